"""The killer counts every write boundary and kills exactly where it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.killer import (
    Point,
    Run,
    Scenario,
    ScenarioError,
    count_boundaries,
    order,
    run_killed,
)

PLAIN = Path(__file__).parent / "scenarios" / "plain.py"
EXPECTED = [
    "open low",
    "write low",
    "fsync low",
    "file.open text",
    "file.write text",
    "file.open binary",
    "file.write binary",
    "replace renamed",
    "mkdir folder",
    "chmod folder",
    "unlink before",
]

pytestmark = pytest.mark.faults


def test_a_dry_run_counts_every_boundary(tmp_path: Path) -> None:
    with Scenario(PLAIN, "writes") as scenario:
        run = scenario.run(tmp_path)
    assert order(run) == EXPECTED
    assert run.acknowledged == ("low", "all")
    assert not run.killed
    assert (tmp_path / "late").exists()


def test_each_run_dies_where_it_is_told(tmp_path: Path) -> None:
    with Scenario(PLAIN, "writes") as scenario:
        for number, (call, _, name) in enumerate((e.partition(" ") for e in EXPECTED), 1):
            before, after = tmp_path / f"{number}b", tmp_path / f"{number}a"
            for home in (before, after):
                home.mkdir()
            assert len(died(scenario.run(before, at=Point(number, "before")))) == number
            assert len(died(scenario.run(after, at=Point(number, "after")))) == number
            if call in ("open", "file.open", "mkdir", "replace"):
                assert not (before / name).exists()
                assert (after / name).exists()
            if call.endswith("write"):
                assert (before / name).read_bytes() == b""
                assert len((after / name).read_bytes()) == 10


@pytest.mark.parametrize("name", ["low", "text", "binary"])
def test_a_torn_write_is_half_there(tmp_path: Path, name: str) -> None:
    number = next(i for i, e in enumerate(EXPECTED, 1) if e.endswith(f"write {name}"))
    assert run_killed(PLAIN, "writes", tmp_path, at=number, when="torn").killed
    assert len((tmp_path / name).read_bytes()) == 5


def test_what_was_acknowledged_is_known(tmp_path: Path) -> None:
    with Scenario(PLAIN, "writes", isolated=True) as scenario:
        assert scenario.run(tmp_path, at=Point(3, "before")).acknowledged == ()
        assert scenario.run(tmp_path, at=Point(4, "before")).acknowledged == ("low",)


def test_the_points_are_all_of_them(tmp_path: Path) -> None:
    with Scenario(PLAIN, "writes") as scenario:
        points = scenario.points(tmp_path)
    assert len(points) == len(EXPECTED) + 1 + 3
    assert [point.when for point in points].count("after") == 1


def test_they_can_be_counted_alone(tmp_path: Path) -> None:
    assert count_boundaries(PLAIN, "writes", tmp_path) == len(EXPECTED)


def test_past_the_end_nothing_is_killed(tmp_path: Path) -> None:
    assert not run_killed(PLAIN, "writes", tmp_path, at=len(EXPECTED) + 1).killed


def test_a_scenario_that_fails_is_no_result(tmp_path: Path) -> None:
    with Scenario(PLAIN, "fails") as scenario, pytest.raises(ScenarioError, match="on purpose"):
        scenario.run(tmp_path)


def test_a_scenario_that_never_begins_is_no_result(tmp_path: Path) -> None:
    with Scenario(PLAIN, "forgets") as scenario, pytest.raises(ScenarioError, match="begin"):
        scenario.points(tmp_path)


def died(run: Run) -> tuple[object, ...]:
    assert run.killed
    return run.boundaries

"""The killer counts every write boundary and kills exactly where it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.killer import (
    Boundary,
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
        for number, point in enumerate(boundaries(scenario, tmp_path / "dry"), 1):
            call, name = point.call, point.name
            before, after = tmp_path / f"{number}b", tmp_path / f"{number}a"
            for home in (before, after):
                home.mkdir()
            assert len(died(scenario.run(before, at=point))) == number
            assert len(died(scenario.run(after, at=replace(point, when="after")))) == number
            if call in ("open", "file.open", "mkdir", "replace"):
                assert not (before / name).exists()
                assert (after / name).exists()
            if call.endswith("write"):
                assert (before / name).read_bytes() == b""
                assert len((after / name).read_bytes()) == 10


@pytest.mark.parametrize("name", ["low", "text", "binary"])
def test_a_torn_write_is_half_there(tmp_path: Path, name: str) -> None:
    call = "write" if name == "low" else "file.write"
    assert run_killed(PLAIN, "writes", tmp_path, at=Point(call, name, when="torn")).killed
    assert len((tmp_path / name).read_bytes()) == 5


def test_what_was_acknowledged_is_known(tmp_path: Path) -> None:
    with Scenario(PLAIN, "writes", isolated=True) as scenario:
        assert scenario.run(tmp_path, at=Point("fsync", "low")).acknowledged == ()
        assert scenario.run(tmp_path, at=Point("file.open", "text")).acknowledged == ("low",)


def test_the_points_are_all_of_them(tmp_path: Path) -> None:
    with Scenario(PLAIN, "writes") as scenario:
        points = scenario.points(tmp_path)
    assert len(points) == len(EXPECTED) + 1 + 3
    assert [point.when for point in points].count("after") == 1


def test_they_can_be_counted_alone(tmp_path: Path) -> None:
    assert count_boundaries(PLAIN, "writes", tmp_path) == len(EXPECTED)


def test_where_the_run_never_comes_nothing_is_killed(tmp_path: Path) -> None:
    assert not run_killed(PLAIN, "writes", tmp_path, at=Point("fsync", "low", 2)).killed


def test_a_point_is_the_same_call_whatever_another_thread_writes(tmp_path: Path) -> None:
    """A thread that writes to its own file before, between, or after moves no point."""
    with Scenario(PLAIN, "beside_a_thread") as scenario:
        for early in ("", "early"):
            home = tmp_path / f"home{early}"
            home.mkdir()
            run = scenario.run(home, early, at=Point("write", ".file.*.tmp", when="torn"))
            assert died(run)[-1].path.endswith(".tmp")
            [left] = home.glob(".file.*.tmp")
            assert left.read_bytes() == b"01234"


def test_a_scenario_that_fails_is_no_result(tmp_path: Path) -> None:
    with Scenario(PLAIN, "fails") as scenario, pytest.raises(ScenarioError, match="on purpose"):
        scenario.run(tmp_path)


def test_a_scenario_that_never_begins_is_no_result(tmp_path: Path) -> None:
    with Scenario(PLAIN, "forgets") as scenario, pytest.raises(ScenarioError, match="begin"):
        scenario.points(tmp_path)


def boundaries(scenario: Scenario, home: Path) -> list[Point]:
    home.mkdir()
    return [boundary.point() for boundary in scenario.run(home).boundaries]


def died(run: Run) -> tuple[Boundary, ...]:
    assert run.killed
    return run.boundaries

"""The page has every span, metric and destination, and its snippets run elsewhere."""

from __future__ import annotations

from pathlib import Path

from apex_creds.audit import names
from apex_creds.audit.sinks import Level
from apex_creds.audit.sinks.parse import _MAKERS, _OPTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "OBSERVABILITY.md").read_text()


def test_every_name_is_on_the_page() -> None:
    own = {
        value
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and "." in value
    }
    assert {name for name in own if f"`{name}`" not in PAGE} == set()


def test_every_destination_and_option_is_on_the_page() -> None:
    assert {scheme for scheme in _MAKERS if f"`{scheme}:" not in PAGE} == set()
    assert {option for option in _OPTIONS if f"`{option}=`" not in PAGE} == set()
    assert {level.value for level in Level if f"`{level.value}`" not in PAGE} == set()

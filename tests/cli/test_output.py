"""Nothing from outside drives the terminal; times are read and shown alike."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.cli import console
from apex_creds.errors import InvalidInputError
from apex_creds.policy import display

NASTY = "a\x1b]0;title\x07\x9b31m\r\n\u202e\u2028\ud800[bold]"


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_safe_text_is_printable_and_can_be_encoded(text):
    assert console.safe(text).isprintable()
    console.safe(text).encode()


@pytest.mark.parametrize("show", ["say", "note", "fail", "table", "fields", "json_out"])
def test_no_way_of_printing_lets_control_characters_through(show, capsys):
    if show == "table":
        console.table(["a"], [[NASTY]])
    elif show == "fields":
        console.fields([(NASTY, NASTY)])
    elif show == "fail":
        console.fail(NASTY, NASTY, kind="SomeError", code=1)
    else:
        getattr(console, show)(NASTY)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert text.replace("\n", "").isprintable()
    assert "[bold]" in text


def test_long_lines_are_not_cut_where_no_terminal_is(capsys):
    console.table(["a", "b"], [["x" * 500, "y" * 500]])
    console.say("z" * 500)
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 500 in line and "y" * 500 in line for line in lines)
    assert "z" * 500 in lines


def test_columns_stand_below_each_other_in_an_encoding_that_has_less(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.table(["name", "kind"], [["schl\u00fcssel/\u65e5\u672c", "one"], ["plain", "two"]])
    stream.flush()
    lines = stream.buffer.getvalue().decode("ascii").splitlines()
    places = {line.index(w) for line in lines for w in ("kind", "one", "two") if w in line}
    assert len(places) == 1
    assert any("schl\\xfcssel/\\u65e5\\u672c" in line for line in lines)


def test_json_is_ascii(capsys):
    console.json_out({"a": NASTY})
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"a": NASTY}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90s", 1090.0),
        ("2h", 8200.0),
        ("1w", 605_800.0),
        ("1970-01-02", 86_400.0),
        ("1970-01-01T01:00", 3600.0),
        ("1970-01-01T01:00Z", 3600.0),
        ("1970-01-01T02:00+01:00", 3600.0),
    ],
)
def test_times(text, wanted):
    assert display.parse_time(text, now=1000.0) == wanted


@pytest.mark.parametrize("text", ["", "soon", "0s", "-1h", "1970-01-01", "٣h", "99999-01-01"])
def test_what_is_no_time_in_the_future(text):
    with pytest.raises(InvalidInputError):
        display.parse_time(text, now=1000.0)


@given(st.integers(1, 200_000_000_000))
def test_what_is_shown_can_be_read(seconds):
    assert display.parse_time(display.show_time(float(seconds)), now=0.0) == seconds


def test_any_number_can_be_shown():
    assert display.show_time(None) == ""
    assert display.show_time(1e300)
    assert display.show_time(float("inf"))

"""What a person is shown is what there is; ids that look alike are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.errors import InvalidInputError, InvalidManifestError, InvalidNameError
from apex_creds.policy.consent import ConsentRequest, lines
from apex_creds.policy.display import (
    check_plugin,
    check_version,
    escaped,
    named,
    parse_span,
    quoted,
    shown,
)
from apex_creds.policy.manifest import Access, parse_manifest

INVISIBLE = (
    "\ufe00\ufe0f\U000e0100\U000e01ef\u034f\u115f\u1160\u3164\uffa0\u17b4\u17b5"
    "\u180b\u180d\u180f\u2800\u200b\u200d\u202e\u2066\u00ad\ufeff\u00a0\u3000"
)


@pytest.mark.parametrize("c", INVISIBLE, ids=ascii)
def test_what_can_not_be_seen_makes_no_twin_and_is_shown_as_an_escape(c: str) -> None:
    for plugin in (f"org.weather{c}", f"org{c}.weather", f"org.w{c}eather"):
        with pytest.raises(InvalidManifestError):
            parse_manifest({"id": plugin})
        for show in (escaped, shown, quoted, named):
            assert show(plugin).isascii()
            assert "\\" in show(plugin)


@pytest.mark.parametrize(
    "plugin",
    [
        " a",
        "a ",
        "a  b",
        "a\u0338b".replace("a", "."),
        "\u043erg.weather",
        "org.w\u03b5ather",
        "\uff4frg",
        "\U0001d428rg",
        "org.weather\\ufe0f",
    ],
    ids=ascii,
)
def test_an_id_that_deceives_the_eye(plugin: str) -> None:
    with pytest.raises(InvalidNameError):
        check_plugin(plugin)


@pytest.mark.parametrize(
    "plugin",
    ["org.weather", "Weather Plugin", "a_b-c/d@1:2+3", "m\u00fcller.caf\u00e9",
     "\u043f\u043e\u0433\u043e\u0434\u0430", "\u5929\u6c17\u4e88\u5831\u306e\u30d7",
     "\u0928\u092e\u0938\u094d\u0924\u0947", "\ub0a0\uc528", "1"],
    ids=ascii,
)  # fmt: skip
def test_ordinary_ids(plugin: str) -> None:
    assert parse_manifest({"id": plugin}).plugin == plugin
    assert shown(plugin) == plugin


@pytest.mark.parametrize("version", ["1", "1.2.3", "2024.1-rc.1+build~5", "1!2_0", "x" * 64])
def test_ordinary_versions(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["1 ", "1.0) wants", "\u0661", "1\n", "x" * 65, "\ufe0f"])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(InvalidManifestError):
        parse_manifest({"id": "p", "version": version})


def test_marks_stay_on_letters_and_gaps_can_be_seen() -> None:
    assert shown("q\u0308") == "q\u0308"
    assert shown(".\u0308") == ".\\u0308"
    assert shown("a   b c") == r"a \x20\x20b c"
    assert quoted('a" b') == r'"a\x22 b"'
    assert (named("a-b"), named("a b"), named("a,b")) == ("a-b", '"a b"', '"a,b"')


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_text_is_shown_so_that_it_can_be_seen_and_once(text: str) -> None:
    assert shown(text).isprintable()
    assert "  " not in shown(text)
    assert shown(shown(text)) == shown(text)
    assert quoted(text).count('"') == 2


def request(**fields: object) -> ConsentRequest:
    return ConsentRequest(**{"plugin": "p", "credential": "prod/db", **fields})  # type: ignore[arg-type]


def test_no_text_of_a_plugin_reads_as_a_line_of_the_program() -> None:
    evil = "p (version 1) wants to use toy [normal]"
    reason = 'to ask"' + " " * 70 + "before: to use it"
    asked = request(
        plugin=evil, version="1) wants (", action=evil, reason=reason, scopes=(evil,)
    )
    found = lines(asked)
    assert found[0] == f'Plugin "{evil}" (version "1) wants (") wants to use prod/db.'
    assert f'  scopes: "{evil}"' in found
    assert f'  action: "{evil}"' in found
    (says,) = (line for line in found if "it says" in line)
    assert says.startswith(r'  it says: "to ask\x22 \x20\x20')
    assert "  before" not in says


def test_letters_beyond_ascii_are_told() -> None:
    assert lines(request(plugin="\u0441\u043e\u0440\u0435"))[1] == (
        r"  NOTE: its id has letters beyond ASCII: '\u0441\u043e\u0440\u0435'"
    )
    assert not any("ASCII" in line for line in lines(request()))


def test_changes_that_are_not_shown_are_counted() -> None:
    changes = tuple(f"credential c{n}" for n in range(53))
    found = [line for line in lines(request(changes=changes)) if "NEW" in line]
    assert found[-1] == "  NEW: and 3 more"
    assert len(found) == 51
    assert not any("more" in line for line in lines(request(changes=changes[:50])))


def test_access_is_told() -> None:
    assert "wants to read the secret of" in lines(request(access=Access.REVEAL))[0]


def test_a_span_is_no_date() -> None:
    assert parse_span("30d") == 30 * 86_400.0
    assert parse_span("0") == 0.0
    for text in ("2030-12-31", "inf", "1e9", "-5d", "9999999y", ""):
        with pytest.raises(InvalidInputError):
            parse_span(text)

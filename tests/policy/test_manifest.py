"""A manifest is read strictly: nothing unknown, doubled, oversized or of another type."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_creds.errors import InvalidManifestError
from apex_creds.model import Origin
from apex_creds.policy.manifest import (
    MAX_ITEMS,
    MAX_NEEDS,
    MAX_REASON,
    Access,
    Manifest,
    Need,
    parse_manifest,
)

GOOD = {
    "name": "openai",
    "scopes": ["chat"],
    "origins": ["https://api.openai.com"],
    "methods": ["get", "POST"],
    "paths": ["/v1/*"],
    "access": "reveal",
    "reason": "to talk",
    "required": False,
}


def metadata(*credentials: object, **fields: object) -> dict[str, object]:
    return {"id": "plugin", "version": "1.2.3", "credentials": list(credentials), **fields}


def test_a_whole_manifest() -> None:
    manifest = parse_manifest(metadata(GOOD, description="the runtime's", actions=[{}]))
    (need,) = manifest.needs
    assert (manifest.plugin, manifest.version) == ("plugin", "1.2.3")
    assert need == Need(
        name="openai",
        scopes=("chat",),
        origins=(Origin("https", "api.openai.com", 443),),
        methods=("GET", "POST"),
        paths=("/v1/*",),
        access=Access.REVEAL,
        reason="to talk",
        required=False,
    )
    assert manifest.need("openai") is need
    assert manifest.need("other") is None


def test_defaults_are_the_narrow_ones() -> None:
    (need,) = parse_manifest(metadata({"name": "openai"})).needs
    assert need.access is Access.INJECT
    assert need.required
    assert not need.scopes


def test_a_plugin_that_declares_nothing() -> None:
    assert parse_manifest({"id": "plugin"}).needs == ()


BAD_NEEDS: list[object] = [
    None,
    "openai",
    1,
    [],
    {},
    {"name": None},
    {"name": ""},
    {"name": "a\nb"},
    {"name": "x" * 10_240},
    {"name": "\ud800"},
    {**GOOD, "unknown": 1},
    {**GOOD, "Scopes": []},
    {**GOOD, "scopes": "chat"},
    {**GOOD, "scopes": [1]},
    {**GOOD, "scopes": [""]},
    {**GOOD, "scopes": ["x"] * (MAX_ITEMS + 1)},
    {**GOOD, "origins": ["api.openai.com"]},
    {**GOOD, "origins": ["https://a/path"]},
    {**GOOD, "origins": ["https://*"]},
    {**GOOD, "origins": ["file:///etc"]},
    {**GOOD, "methods": ["CONNECT"]},
    {**GOOD, "methods": ["*"]},
    {**GOOD, "methods": [""]},
    {**GOOD, "bodies": ["POST"]},
    {**GOOD, "bodies": ["GET"] * 5},
    {**GOOD, "variables": ["lower"]},
    {**GOOD, "variables": ["LD_PRELOAD"]},
    {**GOOD, "variables": ["PATH"]},
    {**GOOD, "variables": ["A=B"]},
    {**GOOD, "variables": [1]},
    {**GOOD, "paths": ["v1"]},
    {**GOOD, "paths": ["/a*b"]},
    {**GOOD, "paths": ["/**"]},
    {**GOOD, "paths": [""]},
    {**GOOD, "paths": ["*"]},
    {**GOOD, "paths": ["/" + "x" * 300]},
    {**GOOD, "access": "REVEAL"},
    {**GOOD, "access": None},
    {**GOOD, "access": "all"},
    {**GOOD, "reason": "x" * (MAX_REASON + 1)},
    {**GOOD, "reason": 1},
    {**GOOD, "required": "yes"},
    {**GOOD, "required": 1},
]


@pytest.mark.parametrize("need", BAD_NEEDS)
def test_a_bad_declaration(need: object) -> None:
    with pytest.raises(InvalidManifestError) as caught:
        parse_manifest(metadata(need))
    assert "PLUGINS.md" in caught.value.hint


BAD_METADATA: list[dict[str, object]] = [
    {},
    {"id": None},
    {"id": 1},
    {"id": ""},
    {"id": "a\0"},
    {"id": "x" * 10_240},
    {"id": "p", "version": 1},
    {"id": "p", "version": "\x1b"},
    {"id": "p", "version": None},
    {"id": "p", "credentials": None},
    {"id": "p", "credentials": {}},
    {"id": "p", "credentials": "x"},
    {"id": "p", "credentials": 3},
    metadata(GOOD, GOOD),
    metadata(*({"name": f"c{n}"} for n in range(MAX_NEEDS + 1))),
]


@pytest.mark.parametrize("bad", BAD_METADATA)
def test_bad_metadata(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidManifestError) as caught:
        parse_manifest(bad)
    assert caught.value.hint


@pytest.mark.parametrize("bad", [None, [], "x", 1])
def test_metadata_that_is_no_mapping(bad: object) -> None:
    with pytest.raises(InvalidManifestError):
        parse_manifest(bad)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    entry=st.dictionaries(st.sampled_from([*GOOD, "other"]), json_values, max_size=5),
    fields=st.dictionaries(st.sampled_from(["id", "version", "credentials"]), json_values),
    whole=st.booleans(),
)
def test_anything_at_all_is_read_or_refused(
    entry: dict[str, object], fields: dict[str, object], whole: bool
) -> None:
    with contextlib.suppress(InvalidManifestError):
        manifest = parse_manifest(metadata(entry, **fields) if whole else fields)
        assert isinstance(manifest, Manifest)


@pytest.mark.parametrize("field", ["name", "scopes", "origins", "methods", "paths", "reason"])
@pytest.mark.parametrize("half", ["\ud800", "a\udfffb"])
def test_half_of_a_surrogate_pair_is_refused(field: str, half: str) -> None:
    """JSON can say it, UTF-8 can't: nothing of it may come as far as the hash."""
    value = half if field in ("name", "reason") else [half]
    for credentials in ([{"name": "k", field: value}], half, [half], [{half: 1}]):
        with pytest.raises(InvalidManifestError) as caught:
            parse_manifest({"id": "p", "credentials": credentials})
        str(caught.value).encode()
    for metadata in ({"id": half}, {"id": "p", "version": half}):
        with pytest.raises(InvalidManifestError):
            parse_manifest(metadata)


def test_the_digest_of_a_manifest_of_before_is_what_it_was() -> None:
    """Grants that are bound to it stay so, though manifests have one field more now."""
    known = "cefca46ec37984280e5b2853e3d5d8a95375e635ab730ba28445e246693a6316"
    assert parse_manifest(metadata(GOOD)).digest == known
    assert parse_manifest(metadata({**GOOD, "echoes": "covered"})).digest == known
    assert parse_manifest(metadata({**GOOD, "echoes": "allowed"})).digest != known
    assert parse_manifest(metadata({**GOOD, "bodies": []})).digest == known
    assert parse_manifest(metadata({**GOOD, "bodies": ["get"]})).digest != known
    assert parse_manifest(metadata({**GOOD, "variables": []})).digest == known
    assert parse_manifest(metadata({**GOOD, "variables": ["LLM_KEY"]})).digest != known


def test_the_digest_is_of_what_is_declared() -> None:
    def digest(*needs: object, **fields: object) -> str:
        return parse_manifest(metadata(*needs, **fields)).digest

    assert digest(GOOD) == digest(dict(reversed(GOOD.items())), version="2", name="other")
    changes = {
        "name": "a", "scopes": [], "origins": [], "methods": ["GET"], "paths": ["/*"],
        "access": "inject", "reason": "", "required": True,
    }  # fmt: skip
    changed = {digest({**GOOD, field: value}) for field, value in changes.items()}
    assert len(changed | {digest(GOOD), digest()}) == len(changes) + 2

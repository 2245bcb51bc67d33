"""What counts as asking for more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.policy.decide import Permission
from apex_creds.policy.decision_cache import added, removed
from apex_creds.policy.grants import MAX_REVOCATIONS, Grants, Revocation, with_revocation
from apex_creds.policy.manifest import Manifest, Need, parse_manifest

BASE = {
    "name": "k",
    "scopes": ["read"],
    "origins": ["https://a.test"],
    "methods": ["GET"],
    "paths": ["/v1/*"],
}


def needs(**changed: object) -> tuple[Need, ...]:
    return parse_manifest({"id": "p", "credentials": [{**BASE, **changed}]}).needs


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"scopes": ["read", "write"]}, "k: scope write"),
        ({"origins": ["https://a.test", "https://b.test"]}, "k: origin https://b.test"),
        ({"origins": []}, "k: origin all that the credential allows"),
        ({"methods": []}, "k: method all that the credential allows"),
        ({"methods": ["GET", "POST"]}, "k: method POST"),
        ({"paths": []}, "k: path all that the credential allows"),
        ({"paths": ["/v1/*", "/v2"]}, "k: path /v2"),
        ({"paths": ["/*"]}, "k: path /*"),
        ({"access": "reveal"}, "k: to read the secret itself"),
        ({"echoes": "allowed"}, "k: to get the secret back from services"),
        ({"bodies": ["DELETE"]}, "k: a body with DELETE"),
        ({"access": "sign"}, "k: to sign with it"),
        ({"name": "other"}, "credential other"),
    ],
)
def test_more_is_named(change, line):
    assert added(needs(), needs(**change)) == (line,)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"scopes": []},
        {"reason": "other words"},
        {"required": False},
        {"paths": ["/v1/x", "/v1/y*"]},
    ],
)
def test_less_or_the_same_is_not_more(change):
    assert added(needs(), needs(**change)) == ()


def test_what_goes_is_named_too():
    assert removed(needs(), needs(scopes=[])) == ("k: scope read",)


paths = st.lists(st.sampled_from(["/*", "/a*", "/a", "/ab", "/b*", "/b/c*"]), max_size=3)
tried = ["/", "/a", "/ab", "/abc", "/b", "/b/c", "/b/cd", "/z"]


@given(before=paths, after=paths)
def test_paths_that_are_not_more_allow_no_more(before, after):
    old, new = Permission(paths=tuple(before)), Permission(paths=tuple(after))
    if not added(needs(paths=before), needs(paths=after)):
        assert all(old.allows_path(path) for path in tried if new.allows_path(path))


@given(
    names=st.lists(st.sampled_from("abc"), max_size=3 * MAX_REVOCATIONS), mark=st.integers(0)
)
def test_a_revocation_is_never_forgotten(names, mark):
    marks: tuple[Revocation, ...] = ()
    for name in names:
        marks = with_revocation(marks, plugin=name)
    grants = Grants(revocations=marks)
    assert len(marks) <= MAX_REVOCATIONS
    assert grants.mark == len(names)
    for name in "abc":
        if name in names[mark:]:
            assert grants.revoked_since(mark, name, "k")
    assert not grants.revoked_since(len(names), "a", "k")
    assert Manifest(plugin="a").checksum == ""

"""decide(): default deny, and never wider than manifest, grant and credential together."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from apex_creds.model import CredentialInfo, CredentialKind, Delivery, Origin
from apex_creds.policy.decide import Decision, Permission, Reason, decide
from apex_creds.policy.grants import Grant, Grants
from apex_creds.policy.manifest import Access, Echoes, Need

ORIGINS = [
    Origin("https", "a.example", 443),
    Origin("https", "a.example", 8443),
    Origin("http", "a.example", 80),
    Origin("https", "b.example", 443),
]
METHODS = ["GET", "POST"]
PATHS = ["/", "/v1/*", "/v1/models", "/*"]
SCOPES = ["read", "write"]
TIMES = [None, 10.0, 20.0]


def some(values: list[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(st.sampled_from(values), unique=True).map(tuple)


needs = st.builds(
    Need,
    name=st.just("c"),
    scopes=some(SCOPES),
    origins=some(ORIGINS),
    methods=some(METHODS),
    paths=some(PATHS),
    access=st.sampled_from(Access),
    echoes=st.sampled_from(Echoes),
)
grants = st.builds(
    Grant,
    id=st.just("0" * 32),
    plugin=st.just("p"),
    credential=st.just("c"),
    scopes=some(SCOPES),
    reveal=st.booleans(),
    echoes=st.booleans(),
    sign=st.booleans(),
    created=st.just(0.0),
    until=st.sampled_from(TIMES),
)
infos = st.builds(
    CredentialInfo,
    id=st.just("1" * 32),
    name=st.just("c"),
    service=st.just("c"),
    kind=st.sampled_from(CredentialKind),
    version=st.just(1),
    delivery=st.just(Delivery.parse("bearer")),
    origins=some(ORIGINS),
    created=st.just(0.0),
    updated=st.just(0.0),
    expires=st.sampled_from(TIMES),
)
nows = st.sampled_from([0.0, 9.9, 10.0, 15.0, 20.0, 25.0])

USES = [
    (origin, method, path, reveal)
    for origin in ORIGINS
    for method in (*METHODS, "DELETE")
    for path in ("/", "/v1/models", "/v1/other", "/v2", "/v1/../v2")
    for reveal in (False, True)
]


def may(
    need: Need | None, grant: Grant | None, info: CredentialInfo | None, now: float, use: tuple
) -> bool:
    """Slow and obvious: is every one of the three in favour of this very use, at this time?"""
    origin, method, path, reveal = use
    if need is None or grant is None or info is None:
        return False
    for end in (grant.until, info.expires):
        if end is not None and now >= end:
            return False
    for scope in need.scopes:
        if scope not in grant.scopes:
            return False
    for asked in need.origins:
        if asked not in info.origins:
            return False
    if reveal:
        return grant.reveal and need.access == "reveal"
    if origin not in info.origins or (need.origins and origin not in need.origins):
        return False
    if need.methods and method not in need.methods:
        return False
    if not need.paths:
        return True
    return ".." not in path and any(fits(path, pattern) for pattern in need.paths)


def fits(path: str, pattern: str) -> bool:
    return path == pattern or (pattern[-1] == "*" and path[: len(pattern) - 1] == pattern[:-1])


def permits(decision: Decision, use: tuple) -> bool:
    origin, method, path, reveal = use
    permission = decision.permission
    if permission is None:
        return False
    if reveal:
        return permission.reveal
    return permission.allows_request(origin=origin, method=method, path=path)


@given(need=needs, grant=grants, info=infos, now=nows)
def test_who_signs_neither_reads_nor_sends_and_who_sends_does_not_sign(
    need: Need, grant: Grant, info: CredentialInfo, now: float
) -> None:
    permission = decide(need=need, grant=grant, info=info, now=now).permission
    if permission is None:
        return
    may_sign = {"inject": False, "sign": grant.sign or grant.reveal, "reveal": grant.reveal}
    assert permission.sign == may_sign[need.access]
    assert permission.inject == (need.access != "sign")
    assert permission.reveal == (need.access == "reveal" and grant.reveal)


@settings(max_examples=200)
@given(need=st.none() | needs, grant=st.none() | grants, info=st.none() | infos, now=nows)
def test_it_permits_what_all_three_permit_and_nothing_else(
    need: Need | None, grant: Grant | None, info: CredentialInfo | None, now: float
) -> None:
    decision = decide(need=need, grant=grant, info=info, now=now)
    for use in USES:
        assert permits(decision, use) == may(need, grant, info, now, use), use
    assert decision.allowed == (decision.reason is Reason.GRANTED)


@settings(max_examples=200)
@given(need=needs, grant=grants, info=infos, now=nows)
def test_a_permission_is_not_wider_than_any_of_the_three(
    need: Need, grant: Grant, info: CredentialInfo, now: float
) -> None:
    permission = decide(need=need, grant=grant, info=info, now=now).permission
    if permission is None:
        return
    assert set(permission.scopes) <= set(need.scopes) & set(grant.scopes)
    assert permission.origins <= set(info.origins)
    assert permission.echoes == (need.echoes is Echoes.ALLOWED and grant.echoes)
    assert permission.origins <= set(need.origins or info.origins)
    for end in (grant.until, info.expires):
        assert end is None or (permission.until is not None and permission.until <= end)
        assert permission.until is None or now < permission.until


@settings(max_examples=100)
@given(need=needs, grant=grants, info=infos, now=nows, data=st.data())
def test_narrowing_a_grant_never_permits_more(
    need: Need, grant: Grant, info: CredentialInfo, now: float, data: st.DataObject
) -> None:
    import msgspec

    narrower = msgspec.structs.replace(
        grant,
        scopes=grant.scopes[:1],
        reveal=grant.reveal and data.draw(st.booleans()),
        until=10.0 if grant.until is None else min(10.0, grant.until),
    )
    wide = decide(need=need, grant=grant, info=info, now=now)
    narrow = decide(need=need, grant=narrower, info=info, now=now)
    assert not any(permits(narrow, use) and not permits(wide, use) for use in USES)


def test_denials_say_why() -> None:
    def ask(need: Need | None, grant: Grant | None, info: CredentialInfo | None) -> Reason:
        return decide(need=need, grant=grant, info=info, now=15.0).reason

    need = Need(name="c", scopes=("read",), origins=(ORIGINS[0],))
    grant = Grant(id="0" * 32, plugin="p", credential="c", scopes=("read",), created=0.0)
    info = example(origins=(ORIGINS[0],))
    late = example(origins=(ORIGINS[0],), expires=15.0)
    assert ask(None, grant, info) is Reason.UNDECLARED
    assert ask(need, None, info) is Reason.NOT_GRANTED
    assert ask(need, grant, None) is Reason.UNKNOWN_CREDENTIAL
    assert ask(need, grant, late) is Reason.CREDENTIAL_EXPIRED
    assert ask(need, grant, example(origins=())) is Reason.ORIGIN_NOT_ALLOWED
    assert ask(Need(name="c", scopes=("write",)), grant, info) is Reason.SCOPE_NOT_GRANTED
    ended = Grant(id="0" * 32, plugin="p", credential="c", created=0.0, until=15.0)
    assert ask(need, ended, info) is Reason.GRANT_EXPIRED
    assert ask(need, grant, info) is Reason.GRANTED


def example(*, origins: tuple[Origin, ...], expires: float | None = None) -> CredentialInfo:
    return CredentialInfo(
        id="1" * 32,
        name="c",
        service="c",
        kind=CredentialKind.API_KEY,
        version=1,
        delivery=Delivery.parse("bearer"),
        origins=origins,
        created=0.0,
        updated=0.0,
        expires=expires,
    )


TRICKS = [
    "/v1/../admin",
    "/v1/./x",
    "/v1/%2e%2e/admin",
    "/v1/%2E./admin",
    "/v1/..",
    "/v1/x%2fy",
    "/v1/x%2Fy",
    "/v1/..\\admin",
    "/v1/%5c..",
    "/v1//x",
    "/v1/x;y=1/../z",
    "/v1/%00",
    "/v1/%252e%252e/admin",
]


@pytest.mark.parametrize("path", TRICKS)
def test_a_path_that_a_server_may_read_in_another_way_fits_no_pattern(path: str) -> None:
    assert not Permission(paths=("/v1/*", "/*", path)).allows_path(path)
    assert Permission().allows_path(path)


@pytest.mark.parametrize(
    ("path", "pattern", "fit"),
    [
        ("/v1", "/v1", True),
        ("/v1/", "/v1", False),
        ("/V1", "/v1", False),
        ("/v1x", "/v1*", True),
        ("/v1/x", "/v1/*", True),
        ("/v1", "/v1/*", False),
        ("", "/*", False),
        ("/", "/*", True),
        ("/a%20b", "/a%20b", True),
        ("/.well-known/x", "/.well-known/*", True),
        ("/a..b", "/*", True),
    ],
)
def test_patterns(path: str, pattern: str, fit: bool) -> None:
    assert Permission(paths=(pattern,)).allows_path(path) is fit


def test_no_origin_is_no_request() -> None:
    assert not Permission().allows_request(origin=ORIGINS[0], method="GET", path="/")


class GrantMachine(RuleBasedStateMachine):
    """Grants come, go and end while a plugin asks; the model remembers all that was said."""

    def __init__(self) -> None:
        super().__init__()
        self.grants = Grants()
        self.said: list[tuple[str, tuple]] = []
        self.now = 0.0

    plugins = st.sampled_from(["p", "q"])
    credentials = st.sampled_from(["c", "d"])

    @rule(
        plugin=plugins,
        credential=credentials,
        scopes=some(SCOPES),
        reveal=st.booleans(),
        until=st.sampled_from(TIMES),
    )
    def grant(
        self, plugin: str, credential: str, scopes: tuple, reveal: bool, until: float | None
    ) -> None:
        made = Grant(
            id="0" * 32,
            plugin=plugin,
            credential=credential,
            scopes=scopes,
            reveal=reveal,
            created=self.now,
            until=until,
        )
        before = list(self.grants)
        self.grants, old = self.grants.updated([], [made]), self.grants
        assert list(old) == before
        self.said.append(("grant", (plugin, credential, made)))

    @rule(plugin=st.none() | plugins, credential=st.none() | credentials)
    def revoke(self, plugin: str | None, credential: str | None) -> None:
        meant = [
            grant
            for grant in self.grants
            if plugin in (None, grant.plugin) and credential in (None, grant.credential)
        ]
        self.grants = self.grants.updated(meant, [])
        self.said.append(("revoke", (plugin, credential, None)))

    @rule(seconds=st.sampled_from([1.0, 5.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_was_said_last_holds(self) -> None:
        info = example(origins=(ORIGINS[0],))
        need = Need(name="c", scopes=("read",), access=Access.REVEAL)
        for plugin, credential in itertools.product("pq", "cd"):
            expected = self.last_word(plugin, credential)
            found = self.grants.find(plugin, credential)
            assert found is expected
            decision = decide(need=need, grant=found, info=info, now=self.now)
            for use in USES[::7]:
                assert permits(decision, use) == may(need, expected, info, self.now, use)

    def last_word(self, plugin: str, credential: str) -> Grant | None:
        for what, (who, which, grant) in reversed(self.said):
            if what == "grant" and (who, which) == (plugin, credential):
                return grant
            if what == "revoke" and who in (None, plugin) and which in (None, credential):
                return None
        return None


GrantMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None
)
TestGrantMachine = GrantMachine.TestCase

"""Rules against a slow model that scans them: which matches, which wins, who is stricter."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.errors import InvalidInputError
from apex_creds.model import CredentialInfo, CredentialKind, Delivery, Origin, Sensitivity
from apex_creds.policy.decide import Decision, Identity, Outcome, Reason, decide
from apex_creds.policy.grants import Grant, GrantDecision
from apex_creds.policy.manifest import Access, Echoes, Need
from apex_creds.policy.patterns import Matcher, name_pattern, origin_pattern, split_name
from apex_creds.policy.rules import (
    EACH_LEASE,
    NEVER,
    NO_POLICY,
    Level,
    Policy,
    Rule,
    Verdict,
    window,
)

# -- the model -------------------------------------------------------------------------


def fits(pattern: str, name: str) -> bool:
    """What docs/POLICY.md says of patterns, letter by letter."""
    if pattern in ("*", "**"):
        return True
    if not name:
        return False
    return _fits(_cut(pattern), _cut(name))


def _cut(text: str) -> list[str]:
    found = [""]
    for letter in text:
        if letter in "./:":
            found.append("")
        found[-1] += letter
    return found if found[0] else found[1:]


def _fits(pattern: list[str], name: list[str]) -> bool:
    if not pattern or not name:
        return not pattern and not name
    head = pattern[0]
    if head.lstrip("./:") == "**":
        sign = head[0] if head[0] in "./:" else ""
        first = name[0][0] if name[0][:1] in (".", "/", ":") else ""
        return sign == first
    if head.endswith("*"):
        sign = head[0] if head[0] in "./:" else ""
        first = name[0][0] if name[0][:1] in (".", "/", ":") else ""
        if sign != first or not name[0].startswith(head[:-1]):
            return False
    elif head != name[0]:
        return False
    return _fits(pattern[1:], name[1:])


def narrowness(pattern: str) -> tuple[int, ...]:
    if pattern in ("*", "**"):
        return (0,) * 6
    if "*" not in pattern:
        return (1, 0, 0, 0, 0, 0)
    parts = [part.lstrip("./:") for part in _cut(pattern)]
    literal = sum("*" not in part for part in parts)
    partial = [part for part in parts if part.endswith("*") and part.strip("*")]
    letters = sum(len(part) - 1 for part in partial)
    return (0, literal, len(partial), letters, int(parts[-1] != "**"), len(parts))


DIMENSIONS = ("plugin", "action", "credential", "scope")


class Said:
    """A rule as the file would have it."""

    def __init__(self, number: int, decision: str, lists: dict[str, list[str]], hours: int):
        self.number, self.decision, self.lists, self.hours = number, decision, lists, hours

    def matches(self, values: dict[str, str], minute: int) -> bool:
        fitting = all(
            any(fits(pattern, values[dimension]) for pattern in patterns)
            for dimension, patterns in self.lists.items()
            if patterns
        )
        return fitting and (not self.hours or 60 <= minute < 120)

    def rank(self) -> tuple[object, ...]:
        lists = [self.lists.get(dimension) or ["*"] for dimension in DIMENSIONS]
        each = [min(map(narrowness, patterns)) for patterns in lists]
        total = tuple(map(sum, zip(*each, strict=True)))
        severity = ("allow", "ask", "deny").index(self.decision)
        return (*total, bool(self.hours), severity, -self.number)

    def rule(self) -> Rule:
        named = {d: tuple(map(name_pattern, patterns)) for d, patterns in self.lists.items()}
        hours = window(start="01:00", end="02:00", zone="UTC") if self.hours else None
        return Rule(id=str(self.number), decision=Verdict(self.decision), time=hours, **named)


def model(rules: list[Said], values: dict[str, str], scopes: list[str], minute: int) -> str:
    answers = []
    for scope in scopes or [""]:
        found = [r for r in rules if r.matches({**values, "scope": scope}, minute)]
        best = max(found, key=Said.rank, default=None)
        answers.append(best.decision if best else "level")
    order = ["allow", "ask", "level", "deny"]  # the level asks
    worst = max(answers, key=order.index)
    return "ask" if worst == "level" else worst


SEGMENTS = st.sampled_from(["a", "ab", "b", "abc"])
SIGNS = st.sampled_from(list("./:"))


@st.composite
def names(draw) -> str:
    text = draw(SEGMENTS)
    for _ in range(draw(st.integers(0, 3))):
        text += draw(SIGNS) + draw(SEGMENTS)
    return text


@st.composite
def patterns(draw) -> str:
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(["*", "**"]))
    parts = [draw(st.sampled_from(["a", "ab", "b", "a*", "ab*", "*"]))]
    more = st.sampled_from(["a", "b", "abc", "a*", "*"])
    parts += [draw(SIGNS) + draw(more) for _ in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        parts.append(draw(SIGNS) + "**")
    return "".join(parts)


some_patterns = st.lists(patterns(), max_size=2)
said = st.tuples(
    st.sampled_from(["allow", "ask", "deny"]),
    st.fixed_dictionaries(dict.fromkeys(DIMENSIONS, some_patterns)),
    st.sampled_from([0, 0, 1]),
)


@settings(max_examples=200, deadline=None)
@given(
    drawn=st.lists(said, max_size=12),
    asked=st.lists(
        st.tuples(names(), names() | st.just(""), names(), st.lists(names(), max_size=2)),
        min_size=1,
        max_size=4,
    ),
    minute=st.sampled_from([0, 59, 60, 119, 120, 1439]),
)
def test_the_verdict_is_that_of_a_scan(drawn: list, asked: list, minute: int) -> None:
    rules = [Said(number, *one) for number, one in enumerate(drawn)]
    policy = Policy([rule.rule() for rule in rules])
    for plugin, action, credential, scopes in asked:
        values = {"plugin": plugin, "action": action, "credential": credential}
        ruling = policy.rule_on(
            **values, level=Sensitivity.NORMAL, scopes=scopes, now=minute * 60.0 + 7
        )
        assert ruling.decision == model(rules, values, scopes, minute)


@settings(max_examples=300, deadline=None)
@given(pattern=patterns(), name=names())
def test_a_pattern_matches_what_the_page_says(pattern: str, name: str) -> None:
    found = Matcher([(name_pattern(pattern),)]).name(name)
    assert bool(found) is fits(pattern, name)


@st.composite
def widened(draw) -> tuple[str, str]:
    """A pattern, and one that matches all that it matches and more."""
    narrow = draw(patterns().filter(lambda text: text not in ("*", "**")))
    parts = _cut(narrow)
    where = draw(st.integers(0, len(parts) - 1))
    if narrow.endswith("**") and where == len(parts) - 1:
        return narrow, "*"
    if draw(st.booleans()) and where:
        return narrow, "".join(parts[:where]) + parts[where][0] + "**"
    part = parts[where]
    sign = part[0] if part[0] in "./:" else ""
    body = part.removeprefix(sign).rstrip("*")
    parts[where] = sign + body[: draw(st.integers(0, len(body)))] + "*"
    return narrow, "".join(parts)


@settings(max_examples=300, deadline=None)
@given(pair=widened(), name=names())
def test_what_matches_more_is_less_specific(pair: tuple[str, str], name: str) -> None:
    narrow, wide = pair
    assert fits(wide, name) or not fits(narrow, name)
    if narrow != wide:
        assert name_pattern(narrow).specificity > name_pattern(wide).specificity


@pytest.mark.parametrize(
    "text", ["a*b", "*a", "**.a", "a.**.b", "a.b**", "***", "", " a", "a\n"]
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        name_pattern(text)


@given(st.text(max_size=30))
def test_a_name_is_its_segments(name: str) -> None:
    assert "".join(split_name(name)) == name


# -- origins ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "origin", "fit"),
    [
        ("https://api.example.com", "https://api.example.com", True),
        ("https://api.example.com", "https://api.example.com:443", True),
        ("https://api.example.com", "http://api.example.com", False),
        ("https://api.example.com", "https://api.example.com:8443", False),
        ("https://api.example.com:*", "https://api.example.com:8443", True),
        ("https://*.example.com", "https://api.example.com", True),
        ("https://*.example.com", "https://a.b.example.com", False),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://evil-example.com", False),
        ("https://**.example.com", "https://a.b.example.com", True),
        ("https://**.example.com", "https://example.com", False),
        ("https://**.example.com", "https://example.com.evil.org", False),
        ("https://API.Example.com", "https://api.example.com", True),
        ("http://127.0.0.1:*", "http://127.0.0.1:80", True),
        ("http://*.0.0.1", "http://127.0.0.1", False),
        ("http://[::1]", "http://[::1]", True),
        ("*", "http://anything.at.all:1", True),
    ],
)
def test_origin_patterns(pattern: str, origin: str, fit: bool) -> None:
    found = Matcher([(origin_pattern(pattern),)]).origin(Origin.parse(origin))
    assert bool(found) is fit


@pytest.mark.parametrize(
    "text",
    ["api.example.com", "https://", "https://a.*.com", "https://a*.com", "ftp://a.com",
     "https://a.com/x", "*://a.com", "https://*", "https://**", "https://a.com:x", "https://u@a"],
)  # fmt: skip
def test_what_is_no_origin_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        origin_pattern(text)


# -- ties and strictness ---------------------------------------------------------------


def rule(name: str, decision: str, **lists: str) -> Rule:
    origin = lists.pop("origin", None)
    read = {key: (name_pattern(text),) for key, text in lists.items()}
    more = {"origin": (origin_pattern(origin),)} if origin else {}
    return Rule(id=name, decision=Verdict(decision), **read, **more)


def winner(*rules: Rule, scopes: tuple[str, ...] = (), origins: tuple[Origin, ...] = ()) -> str:
    return (
        Policy(rules)
        .rule_on(
            plugin="org.tool",
            action="list_all",
            credential="prod/key",
            level=Sensitivity.NORMAL,
            scopes=scopes,
            origins=origins,
            now=0.0,
        )
        .rule
    )


def test_deny_wins_a_tie_then_ask_then_the_first() -> None:
    allow, ask, deny = (rule(d, d, plugin="org.tool") for d in ("allow", "ask", "deny"))
    for order in itertools.permutations([allow, ask, deny]):
        assert winner(*order) == "deny"
    assert winner(allow, ask) == winner(ask, allow) == "ask"
    again = rule("again", "allow", plugin="org.tool")
    assert winner(allow, again) == "allow"
    assert winner(again, allow) == "again"


def test_rules_on_different_things_tie() -> None:
    by_plugin = rule("plugin", "allow", plugin="org.tool")
    by_credential = rule("credential", "deny", credential="prod/key")
    assert winner(by_plugin, by_credential) == "credential"
    wide = rule("wide", "deny", credential="prod/*")
    assert winner(by_plugin, wide) == "plugin", "an exact one is narrower than a pattern"
    long = rule("long", "allow", plugin="org.*")
    assert winner(long, wide) == "wide", "the length of a name does not count"


def test_the_narrower_wins_whatever_it_says() -> None:
    chain = ["*", "org.**", "org.*", "org.t*", "org.to*", "org.tool"]
    for wide, narrow in itertools.pairwise(chain):
        for one, other in (("allow", "deny"), ("deny", "allow")):
            rules = rule("wide", one, plugin=wide), rule("narrow", other, plugin=narrow)
            assert winner(*rules) == winner(*reversed(rules)) == "narrow", (wide, narrow)


def test_of_several_scopes_and_origins_the_strictest_answer_stands() -> None:
    rules = [rule("read", "allow", scope="read"), rule("write", "deny", scope="write")]
    assert winner(*rules, scopes=("read",)) == "read"
    assert winner(*rules, scopes=("read", "write")) == "write"
    assert winner(*rules, scopes=("read", "other")) == "levels.normal"
    assert winner(*rules) == "levels.normal", "no scope is no scope that was allowed"
    web = [
        rule("web", "allow", origin="https://**.com"),
        rule("bad", "deny", origin="http://a.com"),
    ]
    good, bad = Origin.parse("https://a.com"), Origin.parse("http://a.com")
    assert winner(*web, origins=(good,)) == "web"
    assert winner(*web, origins=(good, bad)) == "bad"


def test_nothing_of_the_stricter_is_lost_where_answers_are_put_together() -> None:
    one = Rule(id="1", decision=Verdict.ALLOW, scope=(name_pattern("a"),), reveal=True,
               echoes=True, second_factor=NEVER)  # fmt: skip
    two = Rule(id="2", decision=Verdict.ALLOW, scope=(name_pattern("b"),), second_factor=60.0)
    ruling = Policy([one, two]).rule_on(
        plugin="p", action="", credential="c", level=Sensitivity.CRITICAL,
        scopes=("a", "b"), now=0.0,
    )  # fmt: skip
    assert (ruling.reveal, ruling.echoes, ruling.second_factor) == (False, False, 60.0)


# -- decide() --------------------------------------------------------------------------

HERE = Origin.parse("https://a.com")


def info(level: Sensitivity = Sensitivity.SENSITIVE, expires: float | None = None):
    return CredentialInfo(
        id="1" * 32, name="c", service="c", kind=CredentialKind.API_KEY, version=1,
        delivery=Delivery.parse("bearer"), origins=(HERE,), created=0.0, updated=0.0,
        expires=expires, sensitivity=level,
    )  # fmt: skip


def grant(**fields: object) -> Grant:
    return Grant(id="0" * 32, plugin="p", credential="c", created=0.0, **fields)


NEED = Need(name="c", access=Access.REVEAL)


def ask(policy: Policy = NO_POLICY, **fields: object) -> Decision:
    given = {"need": NEED, "grant": None, "info": info(), "now": 50.0, "plugin": "p", **fields}
    return decide(policy=policy, **given)


def answer(decision: Decision) -> tuple[str, str]:
    return decision.outcome.value, decision.reason.value


ALLOW_C = Policy([rule("r", "allow", credential="c")])
DENY_C = Policy([rule("r", "deny", credential="c")])
ASK_C = Policy(
    [rule("r", "ask", credential="c")], levels={s: Level(Verdict.ALLOW) for s in Sensitivity}
)


def test_what_a_grant_and_a_rule_make_together() -> None:
    no = grant(decision=GrantDecision.DENY)
    assert answer(ask()) == ("ask", "not_granted")
    assert answer(ask(grant=grant())) == ("allow", "granted")
    assert answer(ask(grant=no)) == ("deny", "grant_denied")
    assert answer(ask(ALLOW_C)) == ("allow", "policy_allowed")
    assert answer(ask(ALLOW_C, grant=no)) == ("deny", "grant_denied")
    assert answer(ask(DENY_C, grant=grant())) == ("deny", "policy_denied")
    assert answer(ask(ASK_C)) == ("ask", "not_granted")
    assert answer(ask(ASK_C, grant=grant())) == ("allow", "granted")
    assert answer(ask(ALLOW_C, need=None)) == ("deny", "undeclared")
    assert answer(ask(ALLOW_C, info=None)) == ("deny", "unknown_credential")
    assert answer(ask(ALLOW_C, info=info(expires=50.0))) == ("deny", "credential_expired")
    far = Need(name="c", origins=(Origin.parse("https://b.com"),))
    assert answer(ask(ALLOW_C, need=far)) == ("deny", "origin_not_allowed")


def test_a_no_that_is_over_is_asked_about_again() -> None:
    no = grant(decision=GrantDecision.DENY, until=50.0)
    assert answer(ask(grant=no, now=49.0)) == ("deny", "grant_denied")
    assert answer(ask(grant=no)) == ("ask", "grant_expired")


def test_a_grant_to_another_version_is_none() -> None:
    bound = grant(manifest="m1", checksum="c1")
    assert answer(ask(grant=bound, identity=Identity("m1", "c1"))) == ("allow", "granted")
    for other in (Identity("m2", "c1"), Identity("m1", "c2"), Identity()):
        assert answer(ask(grant=bound, identity=other)) == ("ask", "manifest_changed")
    assert answer(ask(grant=grant(), identity=Identity("m2", "c2"))) == ("allow", "granted")


def test_the_rule_that_decided_is_told() -> None:
    assert (ask(DENY_C).rule, ask().rule) == ("r", "levels.sensitive")


def test_reveal_takes_the_manifest_and_a_rule_or_a_grant_that_say_so() -> None:
    saying = Policy([Rule(id="r", decision=Verdict.ALLOW, reveal=True)])
    assert not ask(ALLOW_C).permission.reveal
    assert ask(saying).permission.reveal
    assert not ask(saying, need=Need(name="c")).permission.reveal
    by_grant = ask(ALLOW_C, grant=grant(reveal=True, until=60.0)).permission
    assert (by_grant.reveal, by_grant.until) == (True, 60.0)
    assert ask(ALLOW_C, grant=grant(until=60.0)).permission.until is None


def test_echoes_take_the_manifest_and_a_rule_or_a_grant_that_say_so() -> None:
    need = Need(name="c", echoes=Echoes.ALLOWED)
    saying = Policy([Rule(id="r", decision=Verdict.ALLOW, echoes=True)])
    assert not ask(ALLOW_C, need=need).permission.echoes
    assert ask(saying, need=need).permission.echoes
    assert not ask(saying).permission.echoes
    by_grant = ask(ALLOW_C, need=need, grant=grant(echoes=True, until=60.0)).permission
    assert (by_grant.echoes, by_grant.reveal, by_grant.until) == (True, False, 60.0)


def test_critical_takes_a_second_factor() -> None:
    critical = info(Sensitivity.CRITICAL)
    given = {"info": critical, "grant": grant()}
    assert answer(ask(**given)) == ("ask", "second_factor_needed")
    assert ask(**given).second_factor == EACH_LEASE
    assert answer(ask(**given, factor=50.0)) == ("allow", "granted")
    assert answer(ask(**given, factor=51.0)) == ("ask", "second_factor_needed")
    minutes = Policy(levels={Sensitivity.CRITICAL: Level(Verdict.ALLOW, second_factor=10.0)})
    fresh = ask(minutes, **given, factor=41.0)
    assert (answer(fresh), fresh.permission.recheck) == (("allow", "policy_allowed"), 51.0)
    assert answer(ask(minutes, **given, factor=40.0)) == ("ask", "second_factor_needed")
    waived = Policy([Rule(id="r", decision=Verdict.ALLOW, second_factor=NEVER)])
    assert ask(waived, **given).allowed


moments = st.sampled_from([0.0, 10.0, 50.0, 1e18, -1e18, math.nan, math.inf, -math.inf])


@settings(max_examples=200, deadline=None)
@given(
    drawn=st.lists(said, max_size=5),
    now=moments,
    until=st.none() | moments,
    expires=st.none() | moments,
    factor=st.none() | moments,
    no=st.booleans(),
    scopes=st.lists(names(), max_size=2, unique=True),
    level=st.sampled_from(list(Sensitivity)),
)
def test_it_is_total_and_no_is_stronger(
    drawn: list, now: float, until: float | None, expires: float | None,
    factor: float | None, no: bool, scopes: list[str], level: Sensitivity,
) -> None:  # fmt: skip
    policy = Policy([Said(number, *one).rule() for number, one in enumerate(drawn)])
    need = Need(name="c", scopes=tuple(scopes))
    given = grant(
        until=until, scopes=("a",), decision=GrantDecision.DENY if no else GrantDecision.ALLOW
    )
    asked = {"policy": policy, "plugin": "a.b", "action": "ab", "now": now, "factor": factor}
    decision = decide(need=need, grant=given, info=info(level, expires), **asked)
    assert decision.allowed is (decision.outcome is Outcome.ALLOW)
    holds = until is None or now < until
    if no and holds:
        assert decision.reason is Reason.GRANT_DENIED
    if expires is not None and not now < expires:
        assert not decision.allowed
    ruling = policy.rule_on(
        plugin="a.b", action="ab", credential="c", level=level, scopes=scopes,
        origins=(HERE,), now=now,
    )  # fmt: skip
    if ruling.decision is Verdict.DENY:
        assert decision.outcome is Outcome.DENY
    if decision.allowed and ruling.decision is Verdict.ASK:
        assert not no
        assert holds
        assert set(scopes) <= {"a"}
    if decision.allowed and ruling.second_factor != NEVER:
        assert factor is not None

"""What is remembered of decisions is what would be decided now."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.model import CredentialInfo, CredentialKind, Delivery
from apex_creds.policy.decide import decide
from apex_creds.policy.decision_cache import DecisionCache
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.policy.patterns import name_pattern
from apex_creds.policy.rules import NO_POLICY, Policy, Rule, Verdict, window

NEED = Need(name="c")
INFO = CredentialInfo(
    id="1" * 32, name="c", service="c", kind=CredentialKind.API_KEY, version=1,
    delivery=Delivery.parse("bearer"), origins=(), created=0.0, updated=0.0, expires=90_000.0,
)  # fmt: skip
HOURS = window(start="01:00", end="02:00", zone="UTC")
MANIFESTS = {name: Manifest(plugin=name, needs=(NEED,)) for name in ("a", "a.b", "b")}

rules = st.builds(
    Rule,
    id=st.just("r"),
    decision=st.sampled_from(list(Verdict)),
    plugin=st.lists(st.sampled_from(["a", "a.*", "b"]).map(name_pattern), max_size=1).map(
        tuple
    ),
    action=st.lists(st.sampled_from(["x", "x*"]).map(name_pattern), max_size=1).map(tuple),
    time=st.sampled_from([None, HOURS]),
)
moments = [0.0, 59.0, 3599.0, 3600.0, 3659.0, 7199.9, 7200.0, 89_999.0, 90_000.0]
steps = st.tuples(
    st.sampled_from(moments), st.sampled_from(list(MANIFESTS)), st.sampled_from(["x", "xy", ""])
)


@settings(max_examples=150, deadline=None)
@given(drawn=st.lists(rules, max_size=4), asked=st.lists(steps, max_size=12))
def test_it_answers_as_decide_would(drawn: list[Rule], asked: list) -> None:
    cache, grants = DecisionCache(), Grants()
    policies = [Policy(drawn), NO_POLICY, Policy(drawn[:1])]
    for policy, (now, plugin, action) in itertools.product(policies, asked):
        found = cache.permission(
            NEED, INFO, now,
            manifest=MANIFESTS[plugin], grants=grants, policy=policy, action=action,
        )  # fmt: skip
        expected = decide(
            need=NEED, grant=None, info=INFO, now=now,
            policy=policy, plugin=plugin, action=action,
        ).permission  # fmt: skip
        assert found == expected

"""The policy file: what is valid, and what everything else gets: an error with its line."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.errors import InvalidPolicyError
from apex_creds.model import Sensitivity
from apex_creds.policy.policy_file import MAX_BYTES, MAX_LINE, line_for, lines_of, parse_policy
from apex_creds.policy.rules import EACH_LEASE, NEVER, Verdict

WHOLE = """\
version = 1

[levels.normal]
decision = "allow"

[levels.critical]
second_factor = 15

[grants]
new_version = "ask"

[[rules]]
id = "office"
decision = "allow"
plugin = ["github.*", "gitlab.**"]
action = "list_*"
credential = "github/*"
scope = [
    "read",  # a comment with a ]
    "issues.*",
]
origin = "https://**.github.com"
time = { days = ["mon", "tue"], from = "08:00", to = "18:00", zone = "Europe/Berlin" }
reveal = true
echoes = true
second_factor = "never"

[[rules]]
decision = "deny"
reason = '''
[[rules]]
not = "one"
'''

[[limits]]
per = "pair"
of = "denials"
limit = "10 per 5 minutes"
persist = true

[[rules]]
decision = "ask"
second_factor = "each_lease"
"""


def test_a_whole_file() -> None:
    policy = parse_policy(WHOLE.encode())
    by_id = {rule.id: rule for rule in policy.rules}
    assert {name: rule.line for name, rule in by_id.items()} == {
        "office": 12,
        "rules[1]": 28,
        "rules[2]": 41,
    }
    office = by_id["office"]
    assert (office.decision, office.reveal, office.second_factor) == ("allow", True, NEVER)
    assert office.echoes
    assert by_id["rules[2]"].second_factor == EACH_LEASE
    assert [pattern.text for pattern in office.scope] == ["read", "issues.*"]
    assert policy.levels[Sensitivity.NORMAL].decision is Verdict.ALLOW
    assert policy.levels[Sensitivity.SENSITIVE].decision is Verdict.ASK
    assert policy.levels[Sensitivity.CRITICAL].second_factor == 900.0
    assert not policy.keep_grants
    (limit,) = policy.limits
    assert (limit.amount, limit.seconds, limit.persist, limit.line) == (10, 300, True, 35)


def test_the_least_file_is_as_none() -> None:
    policy = parse_policy(b"version = 1")
    assert not policy.rules
    assert policy.levels[Sensitivity.CRITICAL].second_factor == EACH_LEASE


def with_rule(line: str) -> str:
    return f'version = 1\n\n[[rules]]\ndecision = "allow"\n{line}\n'


WRONG = {
    "plugin = 3": 5,
    "plugin = []": 5,
    'plugin = ["a", 3]': 5,
    'plugin = "a*b"': 5,
    'plugin = ""': 5,
    f"plugin = [{', '.join(['1'] * 65)}]".replace("1", '"a"'): 5,
    'plugins = "a"': 5,
    'decision = "deny"': 5,
    'origin = "api.example.com"': 5,
    'time = "08:00"': 5,
    'time = { zone = "Mars/Olympus" }': 5,
    'time = { zone = "UTC", from = "8" }': 5,
    'time = { zone = "UTC", until = "08:00" }': 5,
    "time = 08:00:00": 5,
    "second_factor = 0": 5,
    "second_factor = -1": 5,
    "second_factor = nan": 5,
    "second_factor = inf": 5,
    "second_factor = true": 5,
    'second_factor = "sometimes"': 5,
    'reveal = "yes"': 5,
    'echoes = "allowed"': 5,
    'id = "a\\u0007"': 5,
    'id = "\u202e"': 5,
    "[levels]\n[levels.normal]\ndecision = 1": 7,
    '[levels]\ntop = { decision = "ask" }': 6,
    "[more]": 5,
    "x = 1": 5,
    "=": 5,
    'plugin = "a': 5,
    "plugin = 'a\n'": 5,
    f"second_factor = {'9' * 4000}": None,
    '[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "often"': 8,
    '[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "0/minute"': 8,
    '[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "1/minute;2/hour"': 8,
    '[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "1/minute, 2/hour"': 8,
    '[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "1/0 minutes"': 8,
    '[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "1/year"': 8,
    '[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "999999999/minute"': 8,
    '[[limits]]\nper = "user"\nof = "redeems"\nlimit = "1/minute"': 6,
    '[[rules]]\ndecision = "deny"\nreveal = true': 7,
    '[[rules]]\ndecision = "ask"\nechoes = true': 7,
    '[[rules]]\ndecision = "ask"\nsign = true': 7,
    'sign = "yes"': 5,
    'id = "x"\n[[rules]]\ndecision = "deny"\nid = "x"': 8,
    'id = "limits[0]"\n[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "1/hour"': 6,
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_told_with_its_line(line: str) -> None:
    with pytest.raises(InvalidPolicyError) as raised:
        parse_policy(with_rule(line).encode(), where="policy.toml")
    expected = WRONG[line]
    if expected is not None:
        assert raised.value.line == expected, str(raised.value)
        assert f"policy.toml, line {expected}:" in raised.value.message
    assert raised.value.hint
    assert raised.value.exit_code == 7


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", 0),
        (b"version = 2", 1),
        (b"version = true", 1),
        (b"version = 1\n\n\xff", 3),
        (b"\xef\xbb\xbfversion = 1", 1),
        (b"version = 1\n#\x00", 2),
        (b"version = 1\nx = " + b"[" * 4000, None),
        (b"version = 1\n" + b"x = [\n" * 2000, None),
        (b"version = 1\n# " + b"a" * MAX_LINE, 2),
        (b"#\n" * (MAX_BYTES // 2 + 1), 0),
        (b"version = 1\n" + b"a." * 2000 + b"b = 1", None),
        (b'version = 1\nrules = "none"', 2),
        (b"version = 1\nrules = [[]]", 2),
        (b"version = 1\nlevels = []", 2),
    ],
)
def test_hostile_files_are_refused(data: bytes, line: int | None) -> None:
    with pytest.raises(InvalidPolicyError) as raised:
        parse_policy(data)
    if line is not None:
        assert raised.value.line == line, str(raised.value)


def test_too_many_of_anything_are_refused() -> None:
    rule = b'[[rules]]\ndecision = "ask"\n'
    with pytest.raises(InvalidPolicyError):
        parse_policy(b"version = 1\n" + rule * 20_001)
    limit = b'[[limits]]\nper = "pair"\nof = "redeems"\nlimit = "1/hour"\n'
    with pytest.raises(InvalidPolicyError):
        parse_policy(b"version = 1\n" + limit * 101)
    windows = "".join(
        f'[[rules]]\ndecision = "ask"\n'
        f'time = {{ zone = "UTC", from = "{n // 60:02}:{n % 60:02}" }}\n'
        for n in range(501)
    )
    with pytest.raises(InvalidPolicyError, match="different times"):
        parse_policy(f"version = 1\n{windows}".encode())


PIECES = st.sampled_from(
    ["version = 1", "[[rules]]", 'decision = "allow"', 'plugin = "a.*"', "[levels.normal]",
     "[[limits]]", 'per = "pair"', '"'*3, "'"*3, *"[]{}=#\\\x00\n", "'", '"']
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(PIECES | st.text(max_size=5), max_size=20)
    .map("\n".join)
    .map(lambda text: text.encode(errors="surrogatepass"))
    | st.binary(max_size=60)
)
def test_anything_at_all_is_read_or_refused(data: bytes) -> None:
    line = 0
    try:
        parse_policy(data)
    except InvalidPolicyError as error:
        line = error.line
    assert 0 <= line <= data.count(b"\n") + 1


def test_lines_are_found_behind_what_looks_like_tables() -> None:
    text = textwrap.dedent('''\
        a = """
        [b]
        c = 1
        """
        d = [
          [1],
        ]
        "e" = '[f]' # ] """
        [g]
        h = { i = 1 }
        [[j]]
        [[j.k]]
        [[j.k]]
        l = 1
        [[j]]
        [[j.k]]
        l = 2
        ''')
    lines = lines_of(text)
    assert ("b",) not in lines
    assert ("f",) not in lines
    assert lines["d",] == 5
    assert lines["e",] == 8
    assert lines["g", "h"] == 10
    assert lines["j", 0, "k", 1, "l"] == 14
    assert lines["j", 1, "k", 0, "l"] == 17
    assert line_for(lines, ("g", "h", "i")) == 10
    assert line_for(lines, ("z",)) == 0


@given(st.text(alphabet="a=[]{}\"'\\\n#. ", max_size=80))
def test_lines_of_anything(text: str) -> None:
    assert all(1 <= number <= text.count("\n") + 1 for number in lines_of(text).values())

"""The demo: what it proves, that it can fail, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import tempfile

import pytest

from apex_creds.cli.demo import scenario
from apex_creds.redaction.redactor import Redactor


@pytest.fixture
def demo(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def start(*arguments):
        return bare("demo", "--calls", "60", *arguments, home=False)

    return start


def test_every_promise_is_kept_and_nothing_is_left(demo, tmp_path):
    before = os.listdir(tmp_path)
    done = demo("--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["ok"] is True
    assert all(check["ok"] for check in found["checks"])
    assert found["served_right"] == 48
    assert found["denials"] == 8
    assert found["leaks"] >= 16
    assert found["leases_open"] == 0
    assert found["audit_chain_ok"] is True
    assert os.listdir(tmp_path) == before


def test_a_reader_sees_what_it_is(demo):
    done = demo()
    assert done.code == 0
    assert "FOR THIS DEMO ONLY" in done.out
    assert "Every promise was kept." in done.out
    assert "[redacted:CHATTER_TOKEN]" in done.out
    assert "60/60" in done.err


def test_it_fails_when_redaction_does_not_work(demo, monkeypatch):
    monkeypatch.setattr(Redactor, "text", lambda self, text, *, where: text)
    monkeypatch.setattr(Redactor, "value", lambda self, value, *, where: value)
    done = demo("--json")
    assert done.code == 1
    wrong = {check["name"] for check in json.loads(done.out)["checks"] if not check["ok"]}
    assert "secrets in results, logs, errors, files" in wrong
    assert "leaks redacted" in wrong


def test_it_fails_when_the_service_gets_a_wrong_secret(demo, monkeypatch):
    real = scenario.write_env

    def tampered(path):
        return {**real(path), "WEATHER_API_KEY": "something else"}

    monkeypatch.setattr(scenario, "write_env", tampered)
    done = demo("--json")
    assert done.code == 1
    assert not json.loads(done.out)["checks"][1]["ok"]


def test_a_given_home_is_kept_and_used_once(demo, bare):
    key = f"file:{bare.key}"
    assert demo("--home", str(bare.home), "--master", key).code == 0
    assert bare("status", "--json").json()["credentials"] == 4
    assert bare("audit", "verify").code == 0
    assert demo("--home", str(bare.home), "--master", key).code == 3


def test_each_row_can_be_wrong():
    good = {
        "calls": 15,
        "as_expected": 15,
        "wrong": (),
        "right_wanted": 12,
        "right": 12,
        "refused_by_service": 0,
        "denials_wanted": 2,
        "denials": 2,
        "denials_logged": 2,
        "leaks_wanted": 4,
        "leaking_calls": 4,
        "leaks": 7,
        "found": 0,
        "searched": 30,
        "leases": 0,
        "events": 200,
        "chain_ok": True,
        "overhead": 1e6,
        "samples": (),
    }
    assert scenario.Findings(**good).ok
    bad = {
        "as_expected": 14,
        "right": 11,
        "refused_by_service": 1,
        "denials": 3,
        "denials_logged": 1,
        "leaking_calls": 3,
        "found": 1,
        "leases": 1,
        "chain_ok": False,
        "events": 0,
    }
    for name, value in bad.items():
        assert not scenario.Findings(**{**good, name: value}).ok, name


def test_the_plan_has_every_kind_of_call():
    assert set(scenario.plan(15)) == {
        scenario.FORECAST,
        scenario.STORY_CALL,
        scenario.SEND,
        scenario.CRASH,
        scenario.DRIP,
        scenario.STRAY,
        scenario.SNOOP,
    }

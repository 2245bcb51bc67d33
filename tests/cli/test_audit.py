"""The audit commands, as an operator, an auditor and a witness use them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil

import pytest

from apex_creds.audit.note import VerifierKey


@pytest.fixture
def used(cli):
    for name in ("one", "two"):
        assert cli("set", name, stdin=f"secret-of-{name}".encode()).code == 0
    return cli


def test_verify_in_full_and_what_is_new(used):
    assert used("audit", "verify").code == 0
    assert used("audit", "verify", "--incremental").code == 0
    assert used("set", "three", stdin=b"x").code == 0
    report = used("audit", "verify", "--incremental", "--json").json()
    assert report["ok"]
    assert report["signed"] == report["count"]


def test_verify_against_a_checkpoint_that_was_kept(used, tmp_path, error):
    kept = tmp_path / "kept"
    kept.write_text(used("audit", "checkpoint").out)
    key = used("audit", "checkpoint", "--key").out.strip()
    assert used("audit", "verify", "--since", str(kept), "--key", key).code == 0
    old = tmp_path / "old"
    shutil.copytree(used.home / "security/audit", old)
    used("set", "three", stdin=b"x")
    kept.write_text(used("audit", "checkpoint").out)
    shutil.rmtree(used.home / "security/audit")
    shutil.copytree(old, used.home / "security/audit")
    error(10, "audit", "verify", "--since", str(kept), "--key", key)
    assert used("audit", "verify").code == 0


def test_an_event_is_proved_and_the_proof_checked(used, tmp_path, error):
    proof = tmp_path / "event.tlog-proof"
    key = used("audit", "checkpoint", "--key").out.strip()
    for seq in (1, 3, 5):
        proof.write_text(used("audit", "prove", str(seq)).out)
        done = used("audit", "prove", "--check", str(proof), "--key", key)
        assert done.code == 0
        assert f'"seq":{seq},' in done.out
    error(7, "audit", "prove", "99")
    error(7, "audit", "prove", "--check", str(proof))
    proof.write_text(proof.read_text().replace("index 4", "index 3"))
    error(5, "audit", "prove", "--check", str(proof), "--key", key)


def test_a_witness_cosigns_only_what_goes_on(used, tmp_path, error):
    log = used("audit", "checkpoint", "--key").out.strip()
    offered, proof = tmp_path / "offered", tmp_path / "proof"
    options = ("--name", "example.com/w1", "--key-file", str(tmp_path / "key"))
    options += ("--log", log, "--seen", str(tmp_path / "seen"))

    def offer() -> None:
        offered.write_text(used("audit", "checkpoint").out)

    offer()
    done = used("audit", "cosign", str(offered), *options)
    assert done.code == 0
    witness = done.err.strip().rpartition(" ")[2]
    assert VerifierKey.parse(witness).name == "example.com/w1"
    offered.write_text(done.out)
    assert used("audit", "cosign", "--add", str(offered), "--witness", witness).code == 0
    assert used("audit", "verify").code == 0
    used("set", "three", stdin=b"x")
    size = offered.read_text().splitlines()[1]
    proof.write_text(used("audit", "prove", "--from", size).out)
    offer()
    error(5, "audit", "cosign", str(offered), *options)
    assert used("audit", "cosign", str(offered), *options, "--proof", str(proof)).code == 0
    assert witness in used("audit", "checkpoint", "--key").out
    cosigned = used.home / "security/audit/cosigned"
    cosigned.write_bytes(cosigned.read_bytes().replace(b"w1 ", b"w2 "))
    error(10, "audit", "verify")


def test_an_older_copy_is_refused_and_accepted_with_a_reason(used, tmp_path, error):
    shutil.copytree(used.home, tmp_path / "copy")
    used("set", "three", stdin=b"x")
    shutil.rmtree(used.home)
    shutil.copytree(tmp_path / "copy", used.home)
    assert "was anchored" in error(5, "list")
    assert used("list").code == 5
    assert used("audit", "accept-rollback", "--reason", "restored the backup").code == 0
    assert used("list").code == 0
    tail = used("audit", "tail", "--json", "--kind", "rollback").json()
    assert {event["reason"] for event in tail} == {"restored the backup"}
    assert used("audit", "verify").code == 0
    error(7, "audit", "accept-rollback", "--reason", " ")
    assert "Say why, with --reason" in error(7, "audit", "accept-rollback")


def test_tail_filters(used):
    kinds = [e["kind"] for e in used("audit", "tail", "--json", "--kind", "put").json()]
    assert kinds == ["put", "put"]
    found = used("audit", "tail", "--json", "--credential", "two").json()
    assert [event["credential"] for event in found] == ["two"]


def test_whose_a_credential_is_can_be_seen_and_chosen(used):
    for who in ("alice", "bob", "two", "one (for alice)"):
        assert used("set", "one", "--for", who, stdin=f"of-{who}".encode()).code == 0
    assert used("rm", "one", "--for", "bob", "--yes").code == 0
    found = used("audit", "tail", "--json", "--for", "alice").json()
    assert [(event["kind"], event["credential"]) for event in found] == [("put", "one")]
    found = used("audit", "tail", "--json", "--for", "two", "--credential", "one").json()
    assert [event["principal"] for event in found] == ["two"]
    assert used("audit", "tail", "--json", "--for", "ali").json() == []
    shown = used("audit", "tail", "--for", "bob").out
    assert shown.count("one (for bob)") == 2
    assert "alice" not in shown
    assert "(for" not in used("audit", "tail", "--credential", "two").out
    rows = list(csv.DictReader(io.StringIO(used("audit", "export", "--format", "csv").out)))
    puts = [(row["credential"], row["principal"]) for row in rows if row["kind"] == "put"]
    assert ("one", "alice") in puts
    assert ("one", "") in puts


def test_export(used, error):
    lines = used("audit", "export", "--since", "3").out.splitlines()
    assert json.loads(lines[0])["seq"] == 3
    rows = list(csv.DictReader(io.StringIO(used("audit", "export", "--format", "csv").out)))
    assert rows[0]["kind"] == "init"
    assert used("audit", "export", "--since", "2099-01-01").out == ""
    everything = used("audit", "export").out
    assert used("audit", "export", "--since", "2020-01-01").out == everything
    assert used("audit", "export", "--since", "1d").out == everything
    error(7, "audit", "export", "--format", "xml")


def test_pseudonyms_and_their_names(used):
    (used.home / "security/config.json").write_text('{"audit":{"pseudonyms":true}}')
    (used.home / "security/config.json").chmod(0o600)
    used("set", "private", stdin=b"x")
    (event,) = used("audit", "tail", "--json", "-n", "1").json()
    assert event["credential"].startswith("~")
    shown = used("audit", "tail", "--json", "--names", "--kind", "put").json()
    assert shown[-1]["credential"] == "private"


def test_there_is_no_such_lease(used, error):
    error(8, "audit", "show", "feed")


@pytest.mark.parametrize("since", ["\u00b2", "\u0663\u00b3", "9" * 5000, "-", "1.5"])
def test_what_is_no_number_and_no_date(error, since):
    assert "is not a time" in error(7, "audit", "export", "--since", since)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_checkpoint_that_can_not_be_read(error, tmp_path, name):
    assert "can't be read" in error(7, "audit", "verify", "--since", str(tmp_path / name))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero")
def test_a_checkpoint_without_end(error):
    assert "not a regular file" in error(7, "audit", "verify", "--since", "/dev/zero")


def test_openings_of_the_vault_are_no_half_of_a_day(used):
    """Every command opens the vault; the log has each of them, `tail` says how many."""
    for number in range(4):
        assert used("list").code == 0
        assert used("set", f"of-{number}", stdin=b"sk-12345678").code == 0
    everything = used("audit", "tail", "--json").json()
    assert sum(event["kind"] == "unseal" for event in everything) == 10
    shown = used("audit", "tail")
    lines = [line.split()[2] for line in shown.out.splitlines() if line[1:2].isdigit()]
    assert lines == ["init", *["put"] * 6]
    assert "the vault was opened 10 times" in shown.err
    asked = used("audit", "tail", "--kind", "unseal")
    assert len([line for line in asked.out.splitlines() if " unseal " in line]) == 10
    assert "Not shown" not in asked.err


def test_an_opening_that_says_more_is_shown(used):
    """Here: that this is another directory than the one that the master key knows."""
    for known in used.home.parent.glob("*.home"):
        known.unlink()
    assert used("list").code == 0
    *_, newest = used("audit", "tail", "--json").json()
    assert newest["kind"] == "unseal"
    assert newest["detail"] in used("audit", "tail").out


def test_exported_times_are_as_all_commands_print_them(used):
    time = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
    lines = [json.loads(line) for line in used("audit", "export").out.splitlines()]
    rows = csv.DictReader(io.StringIO(used("audit", "export", "--format", "csv").out))
    for event in [*lines, *rows]:
        assert time.fullmatch(event["time"])

"""``client``: keys that stay in their files, and public halves that are enrolled."""

from __future__ import annotations

import base64
import stat
import sys

import anyio
import pytest

from apex_creds.auth import challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.second_factor import Subject
from apex_creds.vault import Vault


@pytest.fixture
def made(cli, tmp_path):
    """A client's key file, and its public key."""
    path = tmp_path / "client.key"
    done = cli("client", "keygen", str(path), home=False)
    assert done.code == 0
    return path, done.out.strip()


def test_a_key_is_made_and_its_public_half_printed(cli, made):
    path, public = made
    assert len(base64.b64decode(public)) == 32
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cli("client", "public", str(path)).out.strip() == public
    seed = path.read_text().split()[1]
    assert not [text for text in cli.seen if seed in text]


def test_a_key_file_is_not_overwritten(cli, made, error):
    before = made[0].read_bytes()
    assert "already" in error(7, "client", "keygen", str(made[0]))
    assert made[0].read_bytes() == before


def test_from_enrolment_to_revocation(cli, made):
    path, public = made
    done = cli("client", "enrol", "worker", public, "--credential", "c", "--until", "1d")
    assert done.code == 0
    assert "worker may answer for c until" in done.out
    [listed] = cli("client", "list", "--json").json()
    assert (listed["name"], listed["public"], listed["credentials"]) == (
        "worker",
        public,
        ["c"],
    )
    assert "worker" in cli("client", "list").out
    assert anyio.run(challenged, cli, path) == "worker"
    assert cli("client", "revoke", "worker").code == 0
    assert cli("client", "list", "--json").json() == []
    assert cli("client", "revoke", "worker").code == 8
    tail = cli("audit", "tail").out
    assert "client" in tail
    assert "challenge" in tail


async def challenged(cli, path):
    subject = Subject(plugin="p", credential="c")
    async with await Vault.unseal(cli.home) as vault:
        challenger = Challenger(vault)
        with ClientKey.load(path) as key:
            answer = key.answer(
                await challenger.issue("worker", subject),
                vault_id=vault.vault_id,
                allow=challenge.expecting(credential="c", plugin="p"),
            )
        return (await challenger.redeem(answer, subject)).name


@pytest.mark.parametrize(
    "arguments",
    [
        ("worker", "not base64!", "--credential", "c"),
        ("worker", "", "--credential", "c"),
        ("worker", base64.b64encode(bytes(31)).decode(), "--credential", "c"),
        ("worker", base64.b64encode(bytes(32)).decode()),
        ("a\nb", base64.b64encode(bytes(32)).decode(), "--credential", "c"),
        ("worker", base64.b64encode(bytes(32)).decode(), "--credential", "c", "--until", "1"),
    ],
)
def test_bad_enrolments(error, cli, arguments):
    error(7, "client", "enrol", *arguments)
    assert "No clients yet" in cli("client", "list").out


def test_a_bad_key_file(error, tmp_path):
    path = tmp_path / "x"
    path.write_text("x")
    path.chmod(0o600)
    error(5, "client", "public", str(path))
    error(6, "client", "public", str(tmp_path / "missing"))


@pytest.mark.parametrize("group", ["client", "factor"])
def test_a_group_alone_prints_its_help(cli, group):
    done = cli(group)
    assert done.code == 0
    assert "enrol" in done.out

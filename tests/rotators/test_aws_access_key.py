"""Access keys of an IAM user are replaced, by moto's server, which checks signatures.

That an inactive key is refused is not asserted: moto takes it.
"""

from __future__ import annotations

import time

import pytest

from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import AwsKey, RotationStage
from apex_creds.rotators import Rotations, configure, rotator_from_uri
from tests.support.rotators import cloud, parts_of, rotate

pytest.importorskip("moto.server")

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow")]


@pytest.fixture(scope="module")
def running():
    with cloud() as made:
        yield made


@pytest.fixture
def iam(running):
    return running.iam


@pytest.fixture
async def first(vault, running, iam):
    user = f"robot-{time.monotonic_ns()}"
    iam.create_user(UserName=user)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    await vault.put(
        "aws", AwsKey(key["AccessKeyId"], key["SecretAccessKey"]), origins=[running.origin]
    )
    await configure(vault, "aws", uri=f"aws-access-key:{running.origin}/{user}", grace=3600.0)
    return user, key["AccessKeyId"]


def keys(iam, user):
    found = iam.list_access_keys(UserName=user)["AccessKeyMetadata"]
    return {each["AccessKeyId"] for each in found}


async def test_there_are_two_keys_and_then_one(vault, iam, first):
    user, old = first
    parts = await rotate(vault, "aws")
    assert keys(iam, user) == {old, parts["user"]}
    again = await rotate(vault, "aws", lost=True)
    assert keys(iam, user) == {again["user"]}
    assert set(again) == {"user", "password"}
    assert again["user"] not in (old, parts["user"])


async def test_a_key_whose_answer_was_lost_is_removed(vault, iam, first, monkeypatch):
    """As when the process dies between the answer and its commit."""
    user, old = first
    rotations = Rotations(vault)
    await rotations.ask("aws", by_hand=True)

    async def dies(*_, **__):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(vault, "put_many", dies)
        with pytest.raises(RotatorError, match="failed in its step create"):
            await rotations.advance("aws")
    assert len(keys(iam, user)) == 2
    assert (await vault.get("aws")).rotation.stage is RotationStage.CREATE
    info = await rotations.advance("aws")
    parts = await parts_of(vault, "aws")
    assert info.rotation.stage is RotationStage.FINISH
    assert keys(iam, user) == {old, parts["user"]}


async def test_a_second_key_of_somebody_else_stays(vault, iam, first):
    user, old = first
    other = iam.create_access_key(UserName=user)["AccessKey"]["AccessKeyId"]
    with pytest.raises(RotatorRefusedError, match="LimitExceeded"):
        await rotate(vault, "aws")
    assert keys(iam, user) == {old, other}


async def test_a_user_that_is_not_there_is_refused(vault, running, first):
    await configure(vault, "aws", uri=f"aws-access-key:{running.origin}/nobody")
    with pytest.raises(RotatorRefusedError, match="NoSuchEntity"):
        await rotate(vault, "aws")


@pytest.mark.parametrize("uri", ["aws-access-key:https://h", "aws-access-key:https://h/a/b"])
def test_a_uri_that_is_not_understood(uri):
    with pytest.raises(InvalidInputError):
        rotator_from_uri(uri)

"""boto3 against moto's server, which checks signatures and rights as AWS does (``sdk-all``).

It does not check those of presigned URLs.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.importorskip("moto.server")

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from apex_creds.model import AwsKey
from apex_creds.sdk import boto3 as sdk
from tests.support.moto import access_key, moto_server
from tests.support.vendor import has_secret
from tests.support.worlds import World, world_in

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow")]
NEED = {"name": "aws", "access": "sign"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto") / "log") as made:
        yield made


@pytest.fixture(scope="module")
def key(cloud: str) -> tuple[str, str]:
    return access_key(cloud)


@pytest.fixture
async def world(
    tmp_path: Path, anyio_backend: str, cloud: str, key: tuple[str, str]
) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        await made.vault.put("aws", AwsKey(*key), origins=[cloud])
        for plugin in ("demo", "other"):
            await made.vault.grant(plugin, "aws", sign=True)
        yield made


async def called(world: World, use, plugin: str = "demo"):
    def action(credentials):
        return use()

    return await world.call(action, needs=(NEED,), plugin=plugin)


SESSION = sdk.session("aws", region_name="us-east-1")


def client(cloud: str, service: str):
    return SESSION.client(
        service, endpoint_url=cloud, config=Config(retries={"total_max_attempts": 1})
    )


def test_the_server_checks_signatures(cloud: str, key: tuple[str, str]) -> None:
    wrong = boto3.Session(key[0], "another", region_name="us-east-1")
    for service, call in (("s3", "list_buckets"), ("sqs", "list_queues")):
        made = wrong.client(service, endpoint_url=cloud)
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            getattr(made, call)()


async def test_objects_whole_streamed_and_in_parts(world: World, cloud: str, key) -> None:
    s3 = client(cloud, "s3")
    name, data = "a b/ü+&=?#.txt", os.urandom(6 << 20)
    config = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)

    def first() -> None:
        s3.create_bucket(Bucket="shop")
        s3.put_object(Bucket="shop", Key=name, Body=b"hello", Metadata={"of": "me"})
        s3.upload_fileobj(io.BytesIO(data), "shop", "big", Config=config)  # in threads

    def second() -> bytes:
        found = s3.get_object(Bucket="shop", Key=name)
        assert found["Metadata"] == {"of": "me"}
        assert b"".join(found["Body"].iter_chunks(2)) == b"hello"
        listed = s3.list_objects_v2(Bucket="shop", Prefix="a b/")
        assert [each["Key"] for each in listed["Contents"]] == [name]
        part = s3.get_object(Bucket="shop", Key="big", Range="bytes=10-19")
        assert part["Body"].read() == data[10:20]
        whole = io.BytesIO()
        s3.download_fileobj("shop", "big", whole)
        return whole.getvalue()

    await called(world, first)
    assert await called(world, second, "other") == data
    assert {event.plugin for event in world.events("redeem")} == {"demo", "other"}
    assert not has_secret(s3, SESSION, secret=key[1])


async def test_services_that_speak_json_and_forms(world: World, cloud: str, key) -> None:
    dynamodb, queues = client(cloud, "dynamodb"), client(cloud, "sqs")
    sts, topics = client(cloud, "sts"), client(cloud, "sns")

    def use() -> None:
        dynamodb.create_table(
            TableName="t",
            KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        dynamodb.put_item(TableName="t", Item={"k": {"S": "ü"}})
        assert dynamodb.get_item(TableName="t", Key={"k": {"S": "ü"}})["Item"]
        url = queues.create_queue(QueueName="q")["QueueUrl"]
        queues.send_message(QueueUrl=url, MessageBody="a&b=c d+e")
        [found] = queues.receive_message(QueueUrl=url)["Messages"]
        assert found["Body"] == "a&b=c d+e"
        assert sts.get_caller_identity()["Arn"].endswith("user/robot")
        assert topics.create_topic(Name="news")["TopicArn"]

    await called(world, use)
    assert not has_secret(dynamodb, queues, sts, topics, secret=key[1])


async def test_a_refusal_is_the_sdks_own(world: World, cloud: str, key) -> None:
    s3 = client(cloud, "s3")
    with pytest.raises(ClientError, match="none here") as outside:
        await asyncio.to_thread(s3.list_buckets)
    assert outside.value.response["Error"]["Code"] == "AccessDenied"
    await world.vault.put("aws", AwsKey(key[0], "another-0123456789"), origins=[cloud])
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        await called(world, s3.list_buckets)

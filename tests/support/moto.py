"""moto's server, which checks signatures and rights as AWS does; and a key for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
}
UNCHECKED = 3
"""Actions before moto checks: a user, his policy, his key."""


@contextlib.contextmanager
def moto_server(log: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(UNCHECKED)}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server,
    ):
        try:
            _wait_for(port, server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            continue
        return
    raise AssertionError(log.read_text())


def access_key(cloud: str) -> tuple[str, str]:
    """Of a user who may do everything."""
    import boto3

    nobody = boto3.Session("nobody", "nothing", region_name="us-east-1")
    iam = nobody.client("iam", endpoint_url=cloud)
    iam.create_user(UserName="robot")
    iam.put_user_policy(UserName="robot", PolicyName="all", PolicyDocument=json.dumps(POLICY))
    made = iam.create_access_key(UserName="robot")["AccessKey"]
    return made["AccessKeyId"], made["SecretAccessKey"]

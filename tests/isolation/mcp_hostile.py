"""A hostile server of MCP: a tool's name says what it does before its answer, or instead."""

from __future__ import annotations

import json
import sys
import time

OUT = sys.stdout.buffer


def say(message):
    raw(json.dumps(message))


def raw(text):
    OUT.write((text if isinstance(text, bytes) else text.encode()) + b"\n")
    OUT.flush()


def result(number, text="real"):
    content = [{"type": "text", "text": text}]
    return {"jsonrpc": "2.0", "id": number, "result": {"content": content}}


def lines(number):
    for text in (
        b"\xff\xfe", "", "[" * 200_000, '{"a":' * 200_000, "[1]", "null", "{", "x" * 100_000,
        '{"method":"x","params":{"n":NaN}}', '{"method":"x","params":{"n":1e999}}',
        '{"method":"x","params":{"n":-Infinity}}', '{"method":"x","n":' + "9" * 5000 + "}",
    ):  # fmt: skip
        raw(text)
    say(result(number))


def ids(number):
    for other in (float(number), str(number), [number], {"id": number}, None, True, 99):
        say(result(other, "false"))
    say({**result(number, "false"), "method": "x"})
    say({"jsonrpc": "2.0", "result": {}})
    say(result(number))


def twice(number):
    for _ in range(3):
        say(result(number))


def huge(number):
    raw("x" * (17 * 1024 * 1024))
    time.sleep(1000)


for line in sys.stdin:
    message = json.loads(line)
    number = message.get("id")
    if message.get("method") == "initialize":
        say(result(float(number), "false"))
        say(result(number))
    elif message.get("method") == "tools/call":
        globals()[message["params"]["name"]](number)
    elif "method" in message and number is not None:
        say(result(number))

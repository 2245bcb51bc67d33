"""A server of MCP over stdio, by the standard library alone, as it runs behind the wall.

Written after what ``mcp`` 2.3's own server answers to its client.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.error
import urllib.request

KEY, BASE = os.environ.get("OPENAI_API_KEY", ""), os.environ.get("OPENAI_BASE_URL", "")


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def fetch(path):
    request = urllib.request.Request(BASE + path, headers={"Authorization": "Bearer " + KEY})
    try:
        return urllib.request.urlopen(request).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


def call(message):
    name, given = message["params"]["name"], message["params"].get("arguments", {})
    if name == "fetch":
        text = fetch("/" + given["path"])
    elif name == "key":
        text = KEY
    elif name == "exit":
        os._exit(3)
    elif name == "never":
        return
    else:
        text = "s"  # how a secret begins
    content = [{"type": "text", "text": text}]
    say({"jsonrpc": "2.0", "id": message["id"], "result": {"content": content}})


AT_START = fetch("/start")
for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if method == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
        result |= {"serverInfo": {"name": "test", "version": "1"}, "instructions": AT_START}
        say({"jsonrpc": "2.0", "id": message["id"], "result": result})
    elif method == "tools/list":
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("fetch", "key")]
        say({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": tools}})
    elif method == "between":
        say({"jsonrpc": "2.0", "id": message["id"], "result": fetch("/between")})
    elif method == "tools/call":
        threading.Thread(target=call, args=(message,)).start()

"""Gives installation tokens to a GitHub App, as GitHub does: it verifies the JWT."""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.support.http_servers import serving

KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


class GitHub:
    """What docs.github.com says of installation tokens; ``now`` is its clock."""

    def __init__(self, clock):
        self.clock, self.tokens, self.made, self.answer = clock, {}, 0, None
        self.seen = []

    def respond(self, asked, _):
        self.seen.append((asked.command, asked.path))
        return *self.serve(asked.command, asked.path, asked.headers), {}

    def lets_in(self, token):
        return self.clock.time() < self.tokens.get(token, 0)

    def serve(self, method, path, headers):
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if (method, path) == ("POST", "/app/installations/7/access_tokens"):
            if self.answer is not None:
                return self.answer
            if not self.verified(bearer):
                return 401, b'{"message":"A JSON web token could not be decoded"}'
            self.made += 1
            token, ends = f"ghs_{self.made:036}", int(self.clock.time()) + 3600
            self.tokens[token] = ends
            at = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return 201, json.dumps({"token": token, "expires_at": at}).encode()
        if not self.lets_in(bearer):
            return 401, b'{"message":"Bad credentials"}'
        if (method, path) == ("DELETE", "/installation/token"):
            del self.tokens[bearer]
            return 204, b""
        return 200, b'{"total_count":0,"repositories":[]}'

    def verified(self, token):
        def decode(text):
            return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

        head, claims, signature = token.split(".")
        assert json.loads(decode(head)) == {"alg": "RS256", "typ": "JWT"}
        KEY.public_key().verify(
            decode(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), SHA256()
        )
        found = json.loads(decode(claims))
        lives = found["exp"] - found["iat"] <= 600 and found["iat"] <= self.clock.time()
        return found["iss"] == "42" and lives and self.clock.time() < found["exp"]


@contextlib.contextmanager
def github_app(clock):
    """A running one."""
    made = GitHub(clock)
    with serving(made.respond) as server:
        made.origin = server.origin
        yield made

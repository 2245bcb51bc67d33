"""Access keys of an IAM user of AWS, of which one can have two.

``aws-access-key:https://iam.amazonaws.com/USER?admin=NAME&region=us-east-1``

The credential is an ``AwsKey`` (kind ``basic``). ``admin`` is another one; without it the key
rotates itself. It needs iam:CreateAccessKey, ListAccessKeys, GetAccessKeyLastUsed,
UpdateAccessKey and DeleteAccessKey on the user. Requests are signed by ``crypto.sigv4``: boto3
would be eighty megabytes for five calls, and reads keys and addresses of the environment.

Guarantee: after a crash, a key whose answer was lost is found by what it can't have: it is none
that is stored, was made after the rotation had begun, and was never used. It is deleted before
another one is made; no other key is. IAM takes some seconds until a new key is known
everywhere, so that it is not known yet is no refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from urllib.parse import urlencode
from xml.etree import ElementTree

import msgspec

from apex_creds.crypto import sigv4
from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import AwsKey, CredentialKind, Secret
from apex_creds.rotators.http import Service
from apex_creds.rotators.protocol import Address, Created, Mode, Task, text_of

_VERSION: Final = "2010-05-08"
_SKEW: Final = 300.0
_ANY: Final = range(200, 600)
_UNKNOWN: Final = frozenset({"InvalidClientTokenId", "InvalidAccessKeyId"})
_KNOWN: Final = frozenset({"", "AccessDenied", "AccessDeniedException"})


class AwsAccessKey:
    """See the module; ``from_uri`` makes one."""

    mode = Mode.DUAL
    kinds = frozenset({CredentialKind.BASIC})
    longest_grace = None

    def __init__(self, address: Address) -> None:
        self.origin = address.origin
        self.admin = address.options.get("admin", "")
        self._user = address.path
        self._region = address.options.get("region", "us-east-1")
        if not self._user or "/" in self._user:
            raise InvalidInputError(
                "A rotator of access keys needs the IAM user.",
                hint="Write aws-access-key:https://iam.amazonaws.com/USER.",
            )
        self._iam = Service(
            name="AWS IAM", origin=address.origin, ca=address.options.get("ca", "")
        )

    async def create(self, task: Task) -> Created:
        """See ``Rotator``."""
        if task.resumed:
            await self._remove_orphans(task)
        found = await self._done(task, "CreateAccessKey")
        key = AwsKey(_text(found, "AccessKeyId"), _text(found, "SecretAccessKey"))
        return Created(secret=key)

    async def set(self, task: Task, new: Secret) -> None:
        """See ``Rotator``: it is valid from the moment that it is made."""

    async def test(self, task: Task, new: Secret) -> None:
        """See ``Rotator``: also who may do nothing is known."""
        _, code = await self._asked(task, new, "GetAccessKeyLastUsed", self._key(new))
        if code in _UNKNOWN:
            raise RotatorError(
                "AWS does not know the new access key yet.", hint="It is tried again."
            )
        if code not in _KNOWN:
            raise RotatorRefusedError(f"AWS does not take the new access key ({code}).")

    async def finish(self, task: Task, old: Secret) -> None:
        """See ``Rotator``."""
        await self._done(
            task, "UpdateAccessKey", {**self._key(old), "Status": "Inactive"}, gone_is_fine=True
        )
        await self._done(task, "DeleteAccessKey", self._key(old), gone_is_fine=True)

    # -- IAM -------------------------------------------------------------------------

    @staticmethod
    def _key(value: Secret) -> dict[str, str]:
        return {"AccessKeyId": text_of(value, "user")}

    async def _remove_orphans(self, task: Task) -> None:
        ours = {text_of(each, "user") for each in (task.current, *task.others)}
        listed = await self._done(task, "ListAccessKeys")
        for member in listed.iterfind(".//{*}AccessKeyMetadata/{*}member"):
            key = {"AccessKeyId": _text(member, "AccessKeyId")}
            made = _time(_text(member, "CreateDate"))
            if key["AccessKeyId"] in ours or made < task.begun - _SKEW:
                continue
            used = await self._done(task, "GetAccessKeyLastUsed", key)
            if used.find(".//{*}LastUsedDate") is None:
                await self._done(task, "DeleteAccessKey", key, gone_is_fine=True)

    async def _done(
        self,
        task: Task,
        action: str,
        fields: Mapping[str, str] | None = None,
        *,
        gone_is_fine: bool = False,
    ) -> ElementTree.Element:
        found, code = await self._asked(task, task.admin or task.current, action, fields or {})
        if code and not (gone_is_fine and code == "NoSuchEntity"):
            hint = ""
            if code == "LimitExceeded":
                hint = "The user has two access keys: delete the one that is not used."
            raise RotatorRefusedError(
                f"AWS refused {action} ({code}).", hint=hint or "Check the user and its rights."
            )
        return found

    async def _asked(
        self, task: Task, who: Secret, action: str, fields: Mapping[str, str]
    ) -> tuple[ElementTree.Element, str]:
        """The answer and the code of an error; empty: it is none."""
        form = {"Action": action, "Version": _VERSION, "UserName": self._user, **fields}
        if action == "GetAccessKeyLastUsed":
            del form["UserName"]
        body = urlencode(form).encode()
        headers = [
            ("Host", str(self.origin).partition("://")[2]),
            ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),
        ]
        signed = sigv4.sign(
            sigv4.Key(
                text_of(who, "user"),
                memoryview(who.parts.get("password", b"")),
                text_of(who, "session"),
            ),
            method="POST",
            target="/",
            headers=headers,
            body=body,
            only=f"{self._region}/iam",
            stamp=sigv4.stamp(task.now),
        )
        answer = await self._iam.ask(
            "POST", signed.target, headers=dict(signed.headers), body=body, fine=_ANY
        )
        found = _parsed(answer.body)
        code = found.findtext(".//{*}Error/{*}Code") or ""
        if not 200 <= answer.status < 300 and (answer.status >= 500 or not code):
            raise self._iam.refusal(answer.status)
        if code in ("Throttling", "RequestLimitExceeded", "ServiceUnavailable"):
            raise self._iam.refusal(503, code)
        return found, code if code.isalnum() and len(code) < 64 else code and "unknown"


def _parsed(body: bytes) -> ElementTree.Element:
    """XML without a document type, so that there are no entities in it."""
    try:
        if b"<!" not in body:
            return ElementTree.fromstring(body)  # noqa: S314 - see above
    except ElementTree.ParseError:
        pass
    raise RotatorError("AWS answered something that is no answer of IAM.")


def _text(where: ElementTree.Element, name: str) -> str:
    found = where.findtext(f".//{{*}}{name}") or ""
    if not found or not found.isascii() or not found.isprintable() or len(found) > 256:
        raise RotatorError(f"The answer of AWS has no {name}.")
    return found


def _time(text: str) -> float:
    try:
        return msgspec.convert(text, datetime).timestamp()
    except (msgspec.ValidationError, OverflowError, ValueError):
        pass
    raise RotatorError("The answer of AWS has a date that is none.")


def from_uri(uri: str) -> AwsAccessKey:
    """The rotator of a URI.

    Raises:
        InvalidInputError: It is not understood.
    """
    return AwsAccessKey(Address.parse(uri, schemes=("https", "http"), options=("region", "ca")))

"""For boto3: clients that sign with placeholders, and whose requests are signed anew.

``session("aws").client("s3", region_name="eu-west-1")``. The credential is an ``AwsKey``, and
the plugin's manifest says ``"access": "sign"`` of it. What boto3 signed is signed again below
it, in the invocation that sends it; threads of an upload or a download have the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import wraps
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import urllib3
from botocore import exceptions
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.config import Config

from apex_creds.errors import ApexCredsError
from apex_creds.sdk.current import placeholder
from apex_creds.sdk.urllib3 import pool_manager

_TRANSFERS: Final = (
    *("upload_file", "upload_fileobj", "download_file", "download_fileobj", "copy"),
)
_TIMEOUT: Final[ContextVar[urllib3.Timeout]] = ContextVar("apex_creds_botocore_timeout")
"""Of the client whose request was made last in this thread: the one that is sent next."""


def session(name: str, *, scope: str | None = None, **options: Any) -> boto3.Session:
    """A ``boto3.Session``, which may be made before any invocation.

    Args:
        name: Of the credential.
        scope: One that the lease must have.
        options: As for ``boto3.Session``, as ``region_name``; keys are placeholders.
    """
    made = boto3.Session(
        aws_access_key_id=placeholder(),
        aws_secret_access_key=placeholder(),
        **options,
    )
    return attach(made, name, scope=scope)


def attach(session: boto3.Session, name: str, *, scope: str | None = None) -> boto3.Session:
    """Has the clients that a session makes from now on send with a credential.

    Args:
        session: Its own keys are not sent: give it placeholders.
        name: Of the credential.
        scope: One that the lease must have.
    """
    session.events.register("request-created", _remember)
    session.events.register("before-send", _Sender(name, scope))
    session.events.register_last("creating-client-class.s3", _keep_context)
    return session


def _remember(request: AWSRequest, **_: object) -> None:
    config = request.context.get("client_config") or Config()
    _TIMEOUT.set(urllib3.Timeout(connect=config.connect_timeout, read=config.read_timeout))


class _Sender:
    """Sends a request that botocore has made, instead of botocore."""

    def __init__(self, name: str, scope: str | None) -> None:
        self._pools = pool_manager(name, scope=scope, refusal="raise")

    def __call__(
        self, request: AWSPreparedRequest, event_name: str = "", **_: object
    ) -> AWSResponse:
        url, parts = request.url, urlsplit(request.url)
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        try:
            # Of the pool, as botocore: a manager would read ``..`` in the name of an object.
            answer = self._pools.connection_from_url(url).urlopen(
                request.method,
                target,
                body=request.body,
                headers=request.headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=_TIMEOUT.get(),
            )
        except ApexCredsError as error:
            # Of botocore's exceptions the one that is not tried again.
            said = {"Code": "AccessDenied", "Message": str(error)}
            status = {"HTTPStatusCode": 403}
            operation = event_name.rpartition(".")[2]
            raise exceptions.ClientError(
                {"Error": said, "ResponseMetadata": status}, operation
            ) from None
        except urllib3.exceptions.NewConnectionError as error:
            raise exceptions.EndpointConnectionError(endpoint_url=url, error=error) from None
        except urllib3.exceptions.ConnectTimeoutError as error:
            raise exceptions.ConnectTimeoutError(endpoint_url=url, error=error) from None
        except urllib3.exceptions.ReadTimeoutError as error:
            raise exceptions.ReadTimeoutError(endpoint_url=url, error=error) from None
        except urllib3.exceptions.HTTPError as error:
            raise exceptions.ConnectionClosedError(endpoint_url=url, error=error) from None
        return AWSResponse(url, answer.status, answer.headers, answer)


def _keep_context(class_attributes: dict[str, Any], **_: object) -> None:
    """Has the threads of a transfer send with the rights of its caller."""
    for name in _TRANSFERS:
        if name in class_attributes:
            class_attributes[name] = _in_context(class_attributes[name])


def _in_context(transfer: Callable[..., object]) -> Callable[..., object]:
    @wraps(transfer)
    def begun(self: object, *args: object, **options: object) -> object:
        return transfer(_Client(self, copy_context()), *args, **options)

    return begun


class _Client:
    """A client whose operations run in one context, in whatever thread they are called."""

    def __init__(self, client: object, context: Context) -> None:
        self._client = client
        self._context = context

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def called(*args: object, **options: object) -> object:
            # A copy for each: a context runs in one thread at a time.
            return self._context.copy().run(found, *args, **options)

        return called

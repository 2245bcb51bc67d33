"""PostgreSQL behind the wall: a socket without a password; the host logs in.

Guarantee: each connection is a redeem of the invocation that runs there, and ends with its
lease, the query that runs in it included; the server is sent the role of the credential, and
the database that the grant names, whatever the driver asks for.
"""

from __future__ import annotations

import asyncio
import struct
from functools import partial

from apex_creds.concurrency import soon
from apex_creds.errors import ApexCredsError
from apex_creds.isolation.connection import CHUNK, Setting, nobody_there
from apex_creds.isolation.environment import Login
from apex_creds.leases.broker import find_open, keep_open
from apex_creds.leases.handle import current_credentials
from apex_creds.middleware.call import Inside, WrappedCall
from apex_creds.sdk.postgres_broker import Account, serve_lease
from apex_creds.sdk.postgres_session import refusal


async def serve_login(
    setting: Setting,
    login: Login,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Serves one connection of a driver, until it or its lease ends."""
    call = setting.invocation_of()
    try:
        if call is None or call.ended:
            raise nobody_there()
        assert isinstance(call, WrappedCall)
        with Inside(call):
            lease_id = current_credentials()[login.name].id
            await _served(setting, login, lease_id, (reader, writer))
    except ApexCredsError as error:
        writer.write(refusal(error.message, error.hint))
    except struct.error:
        raise EOFError from None


async def _served(
    setting: Setting,
    login: Login,
    lease_id: str,
    driver: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    account = Account(login.name, None, login.database, "", None, frozenset())
    task = asyncio.current_task()
    assert task is not None
    end = partial(soon, asyncio.get_running_loop(), task.cancel)
    find_open(lease_id)[0].close_at_end(end)
    dial = partial(setting.dialer.open, tls=None, limit=CHUNK)
    try:
        await serve_lease(account, lease_id, *driver, dial=dial)
    finally:
        keep_open(lease_id, end)

"""The head of a request with the secrets in it, for what is sent elsewhere: a WebSocket, gRPC.

Guarantee: checked, audited and made as every request is; who gets it sends it to where it was
checked for, and keeps none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from apex_creds.documents.records import Record
from apex_creds.leases.answer_search import AnswerSearch
from apex_creds.leases.bodies import NOTHING
from apex_creds.leases.exchange import checked, redeemed, redeemed_blocking
from apex_creds.leases.lease import Lease
from apex_creds.leases.messages import Request
from apex_creds.leases.request_signing import Outgoing


class Head(NamedTuple):
    """A head, and what it was made with.

    Attributes:
        search: Finds in answers what was sent; None: nothing is searched for.
    """

    outgoing: Outgoing
    leases: list[Lease]
    records: list[Record]
    search: AnswerSearch | None


async def injected_head(lease_ids: Sequence[str], request: Request) -> Head:
    """Redeems the leases for a request without a body.

    Raises:
        ApexCredsError: It may not be sent.
    """
    leases, broker, taken, asked, _, _ = checked(lease_ids, request)
    outgoing, records = await redeemed(broker, leases, asked, taken, NOTHING)
    if isinstance(outgoing, BaseException):
        raise outgoing
    return Head(outgoing, leases, records, broker.search)


def injected_head_blocking(lease_ids: Sequence[str], request: Request) -> Head:
    """As ``injected_head``, for threads."""
    leases, broker, taken, asked, _, _ = checked(lease_ids, request)
    outgoing, records = redeemed_blocking(broker, leases, asked, taken, NOTHING)
    if isinstance(outgoing, BaseException):
        raise outgoing
    return Head(outgoing, leases, records, broker.search)

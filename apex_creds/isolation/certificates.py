"""TLS as the hosts that an isolated process may talk to: a CA for each run.

Guarantee: leaf certificates are made for allowed hosts alone, when they are first asked for;
keys are in memory only: ``ssl`` reads them from a file without a name, closed at once.
A client that asks for another host than its tunnel leads to gets none.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection

from apex_creds.crypto.certificates import CertificateAuthority, Leaf

_HTTP: tuple[str, ...] = ("http/1.1",)


class Certificates:
    """The certificates of one run.

    Args:
        hosts: That it may speak for.
        now: Unix seconds.
    """

    def __init__(self, hosts: Collection[str], *, now: float) -> None:
        self._authority = CertificateAuthority(hosts, now=now)
        self._contexts: dict[str, ssl.SSLContext] = {}

    @property
    def pem(self) -> str:
        """What to trust."""
        return self._authority.pem

    def context(self, host: str) -> ssl.SSLContext:
        """Serves TLS as a host.

        Raises:
            KeyError: It is none of those.
        """
        found = self._contexts.get(host)
        if found is None:
            found = self._contexts[host] = _context(self._authority.leaf(host), host)
        return found


def _context(leaf: Leaf, host: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(list(_HTTP))
    fd = os.memfd_create("apex-creds-leaf", os.MFD_CLOEXEC)
    try:
        os.write(fd, leaf.key + leaf.chain)
        made.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)

    def named(_: object, name: str | None, __: object) -> int | None:
        if name in (None, host):
            return None
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    made.sni_callback = named
    return made

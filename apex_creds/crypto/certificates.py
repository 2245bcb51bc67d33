"""A certificate authority for one run: X.509 certificates for a few named hosts (RFC 5280).

Guarantee: its key, and theirs, are in this process's memory only (``ssl`` reads them from a
file without a name, closed at once); its certificate says itself that it is for those hosts
alone (name constraints), so that it is good for nothing else even where somebody trusts it for
longer. A client that asks for another host than it came for gets no certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_EARLIER: Final = timedelta(days=1)
_LIFE: Final = timedelta(days=30)


class Leaf(NamedTuple):
    """A host's certificate and key, PEM."""

    chain: bytes
    key: bytes


class CertificateAuthority:
    """Signs for the hosts that it was made for.

    Args:
        hosts: Names and addresses.
        now: Unix seconds.
    """

    def __init__(self, hosts: Collection[str], *, now: float) -> None:
        self._hosts = frozenset(hosts)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._now = datetime.fromtimestamp(now, UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "apex-creds, one run")])
        built = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if hosts:
            permitted = [_name_of(host, ip_network) for host in sorted(hosts)]
            limits = x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None)
            built = built.add_extension(limits, critical=True)
        self._certificate = built.sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    def leaf(self, host: str) -> Leaf:
        """A certificate for one of its hosts.

        Raises:
            KeyError: It is none of them.
        """
        if host not in self._hosts:
            raise KeyError(host)
        key = ec.generate_private_key(ec.SECP256R1())
        # Not its name: of an address, OpenSSL would hold that against the names it may have.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a host of one run")])
        made = (
            self._builder(name, key.public_key())
            .add_extension(
                x509.SubjectAlternativeName([_name_of(host, ip_address)]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(
            made.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def server_context(self, host: str) -> ssl.SSLContext:
        """Serves TLS as one of its hosts; made when it is first asked for.

        Raises:
            KeyError: It is none of them.
        """
        if host not in self._contexts:
            leaf = self.leaf(host)
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            made.minimum_version = ssl.TLSVersion.TLSv1_2
            made.set_alpn_protocols(["http/1.1"])
            fd = os.memfd_create("apex-creds-leaf", os.MFD_CLOEXEC)
            try:
                os.write(fd, leaf.key + leaf.chain)
                made.load_cert_chain(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)

            def check_name(_: object, name: str | None, __: object) -> int | None:
                known = name in (None, host)
                return None if known else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

            made.sni_callback = check_name
            self._contexts[host] = made
        return self._contexts[host]

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _EARLIER)
            .not_valid_after(self._now + _LIFE)
        )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name_of(host: str, parse: Callable[[str], Any]) -> x509.GeneralName:
    try:
        return x509.IPAddress(parse(host))
    except ValueError:
        return x509.DNSName(host)

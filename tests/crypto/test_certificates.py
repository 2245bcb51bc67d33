"""The authority of a run: for its hosts alone, and OpenSSL agrees."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from apex_creds.clocks import SystemClock
from apex_creds.crypto.certificates import CertificateAuthority, Leaf

HOSTS = ("api.example.com", "10.0.0.1", "::1", "a" * 63 + ".example.com")


def made() -> CertificateAuthority:
    return CertificateAuthority(HOSTS, now=SystemClock().time())


def shaken(trusted: str, leaf: Leaf, host: str, folder) -> None:
    """Shakes hands by TLS."""
    path = folder / "leaf.pem"
    path.write_bytes(leaf.key + leaf.chain)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cadata=trusted)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=host).close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_trusted_by_its_own_name_only(host: str, tmp_path) -> None:
    authority = made()
    shaken(authority.pem, authority.leaf(host), host, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(authority.pem, authority.leaf(host), "other.example.com", tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(made().pem, authority.leaf(host), host, tmp_path)


def test_no_certificate_for_others() -> None:
    with pytest.raises(KeyError):
        made().leaf("evil.example.com")


def test_who_has_its_key_can_use_it_for_its_hosts_only(tmp_path) -> None:
    authority = made()
    authority._hosts = frozenset({"evil.test"})  # as somebody with the key would
    with pytest.raises(ssl.SSLCertVerificationError, match="subtree"):
        shaken(authority.pem, authority.leaf("evil.test"), "evil.test", tmp_path)


def test_a_leaf_signs_nothing() -> None:
    authority = made()
    leaf = authority.leaf(HOSTS[0])
    certificate = x509.load_pem_x509_certificate(leaf.chain)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    key = load_pem_private_key(leaf.key, None)
    assert key.public_key() == certificate.public_key()

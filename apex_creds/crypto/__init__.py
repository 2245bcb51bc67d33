"""All cryptography of apex-creds, pure and synchronous.

Guarantee: key material lives in ``SecretBytes`` (locked, wiped memory) only; no caller
can pick a nonce; a ciphertext opens only under its key and in its place; and no module
outside this package imports ``nacl`` or ``cryptography``. docs/FORMAT.md specifies the
bytes.
"""

"""The one place where a command prints a secret.

Guarantee: it goes to a terminal, or elsewhere only by ``--force``; to a terminal only as
text without control characters, so that a stored value can't drive the terminal. As raw
output it leaves from locked memory without a Python copy, where the stream has a file
descriptor.
"""

from __future__ import annotations

import base64
from typing import TextIO

from apex_creds.cli import output
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError
from apex_creds.fs.private_files import write_all


def check_exit(stream: TextIO, *, force: bool) -> None:
    """Refuses a stream that is no terminal, unless forced.

    Raises:
        InvalidInputError: It may be a file or a log.
    """
    if not force and not stream.isatty():
        raise InvalidInputError(
            "Standard output is not a terminal; the secret would stay in a file or a pipe.",
            hint="Add --force if that is what you want.",
        )


def write_secret(stream: TextIO, secret: SecretBytes) -> None:
    """Writes the exact bytes; on a terminal with a line feed after them.

    Raises:
        InvalidInputError: On a terminal: it is not printable text.
    """
    terminal = stream.isatty()
    if terminal and not _printable(secret):
        raise InvalidInputError(
            "The secret is not printable text.",
            hint="Write it to a file: apex-creds get NAME --reveal --force > FILE",
        )
    stream.flush()
    with secret.view() as view:
        try:
            write_all(stream.fileno(), view)
        except (AttributeError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            stream.buffer.write(view)
    stream.write("\n" if terminal else "")


def write_json(name: str, part: str, secret: SecretBytes) -> None:
    """Writes it as JSON; bytes that are not text as base64."""
    data = secret.expose_bytes()
    try:
        value, encoding = data.decode(), "utf-8"
    except UnicodeDecodeError:
        value, encoding = base64.b64encode(data).decode(), "base64"
    output.json_out({"name": name, "part": part, "encoding": encoding, "value": value})


def _printable(secret: SecretBytes) -> bool:
    try:
        text = secret.expose_bytes().decode()
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\n\t" for c in text)

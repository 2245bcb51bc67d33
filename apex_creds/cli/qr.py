"""A QR code on the terminal.

Guarantee: what is drawn goes to the given stream and nowhere else; no image file is made.
"""

from __future__ import annotations

from typing import TextIO

from apex_creds.errors import NotInstalledError


def draw(text: str, stream: TextIO) -> None:
    """Draws ``text``: in half blocks where the stream can, else in reversed spaces.

    Raises:
        NotInstalledError: segno is not there.
    """
    try:
        import segno
    except ImportError:
        raise NotInstalledError(
            "QR codes need the package segno, which is not installed.",
            hint="Run: pip install 'apex-creds[factors]', or add --no-qr.",
        ) from None
    code = segno.make(text, micro=False, error="l")
    blocks = (stream.encoding or "").lower().replace("-", "") == "utf8"
    code.terminal(out=stream, compact=blocks, border=2)

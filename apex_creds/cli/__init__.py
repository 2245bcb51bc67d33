"""The ``apex-creds`` command: thin commands over the public API.

Guarantee: no secret reaches the arguments, the environment, an error or a log; what comes
from outside is shown without control characters or markup; every failure is one or two
lines on standard error and the exit code that docs/CLI.md lists.
"""

from __future__ import annotations

import sys


def main() -> int:
    """The program; its version and its help need little of it."""
    if sys.argv[1:] == ["--version"]:
        from apex_creds import __version__

        print(f"apex-creds {__version__}")  # noqa: T201
        return 0
    if sys.argv[1:] in (["-h"], ["--help"]):
        from apex_creds.cli import program, standard_streams

        standard_streams.replace_standard()
        try:
            program.outline()(["--help"], prog_name="apex-creds", standalone_mode=False)
            sys.stdout.flush()
        except (standard_streams.ReaderGoneError, standard_streams.OutputError) as error:
            return standard_streams.not_shown(error)
        return 0
    import gc

    gc.disable()  # what is imported stays: it need not be traversed, now or at the end
    from apex_creds.cli import app

    gc.freeze()
    gc.enable()
    return app.main()


__all__ = ["main"]

"""What the machine offers: locked memory, no core files, a clock that goes forward."""

from __future__ import annotations

import sys
import time

from apex_creds.cli import when
from apex_creds.cli.doctor.checks import Check, failure, ok, warning
from apex_creds.crypto.hardening import Hardening
from apex_creds.crypto.memory import SecretBytes, arena

_TOLERANCE = 2.0
_EARLIEST = 1_735_689_600.0  # 2025-01-01: before there was anything of this to run

_hardening: Hardening | None = None


def remember(result: Hardening) -> None:
    """Keeps what ``harden_process`` reached at the start, for ``core_dumps``."""
    global _hardening
    _hardening = result


def memory_locking() -> Check:
    """Whether secrets in memory are kept out of swap."""
    name = "memory locking"
    with SecretBytes.random(32):
        locked = arena().locked
    limit = _lock_limit()
    if locked:
        return ok(name, f"secrets are locked in memory{limit}")
    return warning(
        name,
        f"the system refuses to lock memory: secrets may be swapped to disk{limit}",
        "Raise the limit (ulimit -l, LimitMEMLOCK= of systemd), or encrypt the swap.",
    )


def _lock_limit() -> str:
    try:
        import resource
    except ImportError:
        return ""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return "" if soft < 0 else f" (limit {soft // 1024} KiB)"


def core_dumps() -> Check:
    """Whether a crash could write secrets to a file."""
    name = "core dumps"
    if _hardening is None:
        return warning(
            name,
            "this process was not hardened",
            "Run the apex-creds program; the middleware does it for a runtime.",
        )
    if _hardening.no_core_files and (_hardening.undumpable or sys.platform != "linux"):
        return ok(name, "off for this program, and for runtimes that use the middleware")
    return warning(
        name,
        "this system does not let a program switch them off",
        "Set ulimit -c 0 where the runtime is started.",
    )


def cryptography() -> Check:
    """Which cryptographic libraries are used; SECURITY.md says when to update them."""
    from apex_creds.crypto.versions import versions

    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return ok("cryptography", found)


def clock(latest: float) -> Check:
    """Whether the clock goes on from the last time that the vault saw.

    Args:
        latest: Unix seconds of the newest event or document; 0 when there is none.
    """
    name, now = "clock", time.time()
    fix = "Set the clock (timedatectl set-ntp true): expiry and the log depend on it."
    if now < _EARLIEST:
        return failure(name, f"it says {when.show(now)}", fix)
    if now + _TOLERANCE < latest:
        return failure(name, f"it is {latest - now:.0f} s behind the vault's last event", fix)
    return ok(name, f"{when.show(now)}, not before anything that the vault has seen")

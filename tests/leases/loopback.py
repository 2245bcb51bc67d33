"""The server of ``tests.support.loopback``, under the name that programs elsewhere import."""

from __future__ import annotations

from tests.support.loopback import *  # noqa: F403

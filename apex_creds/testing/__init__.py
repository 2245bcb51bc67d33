"""Conformance suites that third-party backends and providers can run on themselves."""

from __future__ import annotations

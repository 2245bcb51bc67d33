"""The versions of the tables, for Alembic."""

from __future__ import annotations

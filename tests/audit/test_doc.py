"""docs/AUDIT.md says what the schema says."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_the_page_is_current() -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "audit_docs.py"
    made = runpy.run_path(str(script))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), (
        "run scripts/audit_docs.py"
    )


def test_every_field_is_described() -> None:
    from apex_creds.audit.events import Recorded

    page = (Path(__file__).resolve().parents[2] / "docs" / "AUDIT.md").read_text()
    assert all(f"| `{name}` |" in page for name in Recorded.__struct_fields__)

"""Writes dashboards/*.json: ``python -m deploy.grafana.build``.

Guarantee: the same program writes the same bytes, and tests/deploy compares them with what
is committed. grafana-foundation-sdk (Apache-2.0, by Grafana) is needed here only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.keys import keys
from deploy.grafana.runtime import runtime
from deploy.grafana.security import security

FOLDER: Final = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, str]:
    """The text of each file, by its name."""
    made = {"security.json": security(), "keys.json": keys(), "runtime.json": runtime()}
    return {name: _text(each) for name, each in made.items()}


def _text(dashboard: Dashboard) -> str:
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)

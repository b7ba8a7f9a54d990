"""What several modules of tests of ``cancel_runs`` need."""

from __future__ import annotations

import re

RECORD = "Cancellation: can_…\n"
"""The line that names the record, as ``hide_id`` leaves it."""


def hide_id(text: str) -> str:
    """Return what a command printed without the id of the record."""
    return re.sub(r"\bcan_[0-9a-f]{32}\b", "can_…", text)

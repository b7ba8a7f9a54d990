"""What the tests in a browser need that no Python package brings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.backends.services import miss

AXE = Path(__file__).parents[2] / ".venv/axe/node_modules/axe-core/axe.min.js"

USED: set[str] = set()
"""The browsers that tests ran in."""


def chromium() -> str | None:
    """Return the path of a Chromium: that of ``CHROMIUM``, or one of the system."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def require_chromium() -> str:
    """Return the path of Chromium; skip the test, loudly, unless there is one."""
    return chromium() or miss("Chromium (apt-get install chromium, or set CHROMIUM)")


def require_axe() -> str:
    """Return the source of axe-core; skip the test, loudly, unless it is there."""
    if not AXE.exists():
        miss("axe-core (install npm, then run: rm .venv/.installed; make install)")
    return AXE.read_text("utf-8")

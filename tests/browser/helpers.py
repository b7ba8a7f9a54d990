"""Programs that the tests in a browser need and no Python package brings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.services import skip_without

AXE = Path(__file__).parents[2] / ".venv/axe/node_modules/axe-core/axe.min.js"


def chromium() -> str | None:
    """Return the path of a Chromium: that of ``CHROMIUM``, or one of the system."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def require_chromium() -> str:
    """Return the path of Chromium; skip the test unless there is one."""
    return chromium() or skip_without("Chromium (apt-get install chromium, or set CHROMIUM)")


def require_axe() -> str:
    """Return the source of axe-core; skip the test unless it is there."""
    if not AXE.exists():
        skip_without("axe-core (install npm, then run: make test-all)")
    return AXE.read_text("utf-8")

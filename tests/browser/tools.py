"""What the tests in a browser need that no Python package brings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[2] / ".venv/axe/node_modules/axe-core/axe.min.js"


def chromium() -> str | None:
    """Return the path of a Chromium: that of ``CHROMIUM``, or one of the system."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


MISSING = {
    "Chromium (apt-get install chromium, or set CHROMIUM)": chromium,
    "axe-core (install npm, then: make install)": lambda: AXE.exists(),
}


def missing() -> list[str]:
    """Return what is not there, and where to get it."""
    return [what for what, found in MISSING.items() if not found()]


def require_everything() -> None:
    """Skip the test when something is missing; where all must be there, fail."""
    if absent := " and ".join(missing()):
        give_up: Any = (
            pytest.fail if os.environ.get("RUN_CANCEL_REQUIRE_SERVICES") == "1" else pytest.skip
        )
        give_up(f"Missing: {absent}")

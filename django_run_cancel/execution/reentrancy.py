"""Detects a generator being garbage-collected during a database call, which allows no second one.

A generator that is abandoned inside of ``execution()`` runs ``__exit__`` wherever Python happens to
collect it, for example inside of a database driver.
"""

from __future__ import annotations

import sys
from types import FrameType

_NOT_REENTRANT = (
    "django.db.backends.",
    "django.db.utils",
    "django_run_cancel.execution.callbacks",
    "django_run_cancel.execution.flag",
    "django_run_cancel.execution.watcher",
)
"""Modules that may be holding a lock when the garbage collector interrupts them."""


def is_inside_statement() -> bool:
    """Tell whether a frame further up the stack may be executing a database statement."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_NOT_REENTRANT):
            return True
        frame = frame.f_back
    return False

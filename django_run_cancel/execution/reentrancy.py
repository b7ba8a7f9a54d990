"""Detects that a generator is collected amid a database statement, where no other may begin.

One that is abandoned inside of ``execution()`` leaves its block wherever Python collects it.
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
"""Modules that hold a lock, of a connection or of their own, while they call others."""


def is_amid_statement() -> bool:
    """Tell whether the code that collects the caller's generator may be inside a statement.

    To be called by the ``__exit__`` that the generator calls.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_NOT_REENTRANT):
            return True
        frame = frame.f_back
    return False

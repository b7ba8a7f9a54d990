"""Tells whether Django refuses the ORM in this thread, since an event loop runs in it."""

from __future__ import annotations

import asyncio
import os


def orm_is_refused() -> bool:
    """Tell whether Django refuses the ORM in this thread, since an event loop runs in it.

    With ``DJANGO_ALLOW_ASYNC_UNSAFE`` it does not.
    """
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

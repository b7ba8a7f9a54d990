"""``orm_is_refused()``: detects threads with an event loop, in which Django forbids the ORM."""

from __future__ import annotations

import asyncio
import os


def orm_is_refused() -> bool:
    """Tell whether the ORM raises SynchronousOnlyOperation in this thread.

    It does if an event loop runs there, except with ``DJANGO_ALLOW_ASYNC_UNSAFE``.
    """
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

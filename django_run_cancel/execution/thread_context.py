"""``RUN_CANCEL_THREAD_CONTEXT``: lets background threads see the same rows as the code of a run.

With a schema per tenant, row-level security or session variables, the rows that a query finds
depend on the connection. The setting names a function that is called in the thread of the run's
code and returns a context manager factory without parameters. Threads of this package enter such a
context before they use the database for that run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from django.utils.module_loading import import_string

from django_run_cancel.conf import settings

ThreadContext = Callable[[], AbstractContextManager[Any]]

NO_CONTEXT: ThreadContext = nullcontext


def capture_thread_context() -> ThreadContext:
    """Return a context manager factory for threads that must see the caller's rows."""
    if settings.THREAD_CONTEXT is None:
        return NO_CONTEXT
    context: ThreadContext = import_string(settings.THREAD_CONTEXT)()
    return context


def grouping_key(context: ThreadContext) -> Hashable:
    """Return a key that is equal for contexts in which the same rows are visible."""
    if isinstance(context, partial):
        key = (context.func, context.args, tuple(sorted(context.keywords.items())))
        try:
            hash(key)
        except TypeError:
            return context
        return key
    return context


def call_in(context: ThreadContext, function: Callable[[], Any]) -> Any:
    """Call a function inside of a context, and return its result."""
    with context():
        return function()

"""The context in which this package's threads see the same rows as the code of a run does.

With a schema per tenant, row-level security or session variables, what a query finds depends on the
connection that asks. ``RUN_CANCEL_THREAD_CONTEXT`` names a function that is called where the code
of the run is, and returns a function without arguments that makes a context manager. Threads of
this package enter it before they touch the database for that run.
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
    """Return what threads must enter to see what the calling code sees."""
    if settings.THREAD_CONTEXT is None:
        return NO_CONTEXT
    context: ThreadContext = import_string(settings.THREAD_CONTEXT)()
    return context


def grouping_key(context: ThreadContext) -> Hashable:
    """Return a key that is equal for contexts that show the same rows."""
    if isinstance(context, partial):
        key = (context.func, context.args, tuple(sorted(context.keywords.items())))
        try:
            hash(key)
        except TypeError:
            return context
        return key
    return context


def call_in(context: ThreadContext, function: Callable[[], Any]) -> Any:
    """Call a function inside of a context, and return what it returns."""
    with context():
        return function()

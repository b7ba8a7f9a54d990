"""Settings of the app: read from Django's settings at each access, and never cached."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings

PREFIX = "RUN_CANCEL_"


class RunCancelSettings:
    """The settings and their defaults. ``settings.SCOPE`` reads ``RUN_CANCEL_SCOPE``."""

    RUN_MODEL: str = "django_run_cancel.Run"
    """The run model, as ``app_label.ModelName``. Set it before the first migration."""

    ID_PREFIXES: dict[str, str] = {}
    """Maps run types to the prefix of their new run ids; other types have the default prefix."""

    SCOPE: str | None = None
    """Dotted path of ``(request, queryset) -> queryset``: limits the runs a request can access."""

    BACKENDS: dict[str, dict[str, Any]] = {}
    """Executor backends by alias, as in CACHES: ``{"BACKEND": dotted path, "OPTIONS": {…}}``."""

    POLL_SECONDS: float = 1.0
    """Seconds between two queries for the cancellation of runs that this process executes."""

    HEARTBEAT_SECONDS: float = 15.0
    """Seconds between two heartbeats of a running execution."""

    TAKE_OVER_SECONDS: float | None = None
    """Seconds without a heartbeat until a redelivered job takes over its run.

    None means three times ``HEARTBEAT_SECONDS``.
    """

    THREAD_CONTEXT: str | None = None
    """Dotted path of a function that returns a context manager factory for background threads.

    They need it where a connection decides which rows are visible: see ``thread_context.py``.
    """

    GRACE_SECONDS: float = 30
    """Seconds after a cancellation until backends that can kill are asked to kill the work."""

    PRESUME_SECONDS: float = 300
    """Seconds after a cancellation until work that has not reported its end is presumed stopped."""

    STALLED_SECONDS: float | None = None
    """Seconds without a heartbeat until a running run is set to ``timed_out``; None for never."""

    MAX_ATTEMPTS: int = 10
    """Maximum number of attempts to call an executor or a handler that fails."""

    MAX_TREE: int = 10_000
    """Maximum number of descendants cancelled in one transaction.

    The delivery worker cancels the others afterwards.
    """

    MAX_LOCK_MS: int = 250
    """Milliseconds that a bulk cancellation may lock rows: it adapts the size of its batches."""

    MAX_BULK: int = 10
    """Maximum number of bulk cancellations per tenant that the API accepts at the same time."""

    LISTEN: bool = False
    """Whether running code is notified of cancellations by LISTEN, in addition to polling.

    Only on PostgreSQL.
    """

    HANDLERS: list[str] = []
    """Dotted paths of ``(item) -> None``, called for each cancelled run.

    The transaction in which they are called commits exactly once for each run.
    """

    TRACK: list[str] = ["*"]
    """Patterns for the names of tasks that become runs; a pattern after ``!`` excludes tasks."""

    DESCRIBE: str | None = None
    """Dotted path of ``(name, args, kwargs) -> dict``: returns field values for a task's run."""

    EXPOSE_ERRORS: bool = False
    """Whether the API returns the error message of a failed run, or only the error's class."""

    def __getattribute__(self, name: str) -> Any:
        default = super().__getattribute__(name)
        if name.isupper():
            return getattr(django_settings, PREFIX + name, default)
        return default

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all settings, with their prefix."""
        return [PREFIX + name for name in cls.__annotations__]


settings = RunCancelSettings()

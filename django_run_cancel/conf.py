"""Settings: flat, prefixed with RUN_CANCEL_, read when they are needed and never cached."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings

PREFIX = "RUN_CANCEL_"


class RunCancelSettings:
    """The settings and their defaults. ``settings.SCOPE`` reads ``RUN_CANCEL_SCOPE``."""

    RUN_MODEL: str = "django_run_cancel.Run"
    """The run model, as ``app_label.ModelName``. Set it before the first migration."""

    ID_PREFIXES: dict[str, str] = {}
    """Prefix of new run ids by run type, in addition to ``task`` and ``workflow``."""

    SCOPE: str | None = None
    """Dotted path of ``(request, queryset) -> queryset``: the runs that a request may touch."""

    BACKENDS: dict[str, dict[str, Any]] = {}
    """Executors by alias: ``{"BACKEND": dotted path, "OPTIONS": {…}}``, in the form of CACHES."""

    POLL_SECONDS: float = 1.0
    """How often running code looks whether it has been cancelled."""

    HEARTBEAT_SECONDS: float = 15.0
    """How often running code says that it is alive."""

    TAKE_OVER_SECONDS: float | None = None
    """After how long without a heartbeat a job that is delivered again takes over its run."""

    THREAD_CONTEXT: str | None = None
    """Dotted path of a function that returns what threads enter to see the rows the code sees."""

    GRACE_SECONDS: float = 30
    """How long cancelled code may take to end, before it is killed where that can be done."""

    PRESUME_SECONDS: float = 300
    """After how long cancelled code that nobody has heard of is presumed to have ended."""

    STALLED_SECONDS: float | None = None
    """After how long without a heartbeat a running run is set to timed out; None for never."""

    MAX_ATTEMPTS: int = 10
    """How often an executor or a handler that fails is tried, before somebody must look."""

    MAX_TREE: int = 10_000
    """Descendants cancelled in one transaction; of more, the delivery worker cancels the rest."""

    MAX_LOCK_MS: int = 250
    """How long a bulk cancellation may lock runs at a time: it cancels fewer at once if need be."""

    MAX_BULK: int = 10
    """How many bulk cancellations of a tenant may be in progress at a time over the API."""

    LISTEN: bool = False
    """Whether running code learns of a cancellation at once, through LISTEN on PostgreSQL."""

    HANDLERS: list[str] = []
    """Dotted paths of ``(item) -> None``: what must happen exactly once for a cancelled run."""

    TRACK: list[str] = ["*"]
    """Patterns of the names of tasks that become runs; after ``!``, of those that do not."""

    DESCRIBE: str | None = None
    """Dotted path of ``(name, args, kwargs) -> dict``: fields of the run of a task."""

    EXPOSE_ERRORS: bool = False
    """Whether API keys read the message of an error that a run failed with, or only its kind."""

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

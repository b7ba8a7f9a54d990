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

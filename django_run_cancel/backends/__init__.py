"""Backends: how each executor is given a run, and is told to stop one."""

from __future__ import annotations

import threading
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_run_cancel.backends.base import (
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.conf import settings
from django_run_cancel.exceptions import UnknownBackend

__all__ = ["BackendError", "BaseBackend", "StopOutcome", "StopRequest", "TaskCall", "get_backend"]

_instances: dict[str, tuple[Any, BaseBackend]] = {}
_lock = threading.Lock()


def get_backend(alias: str) -> BaseBackend:
    """Return the backend with this alias, made once for each configuration it has had.

    Args:
        alias: A key of ``RUN_CANCEL_BACKENDS``.

    Raises:
        UnknownBackend: The setting has no such alias.
        ImproperlyConfigured: Its class is no backend, or refuses the options.
        ImportError: Its class or the package of its executor cannot be imported.
    """
    configuration = settings.BACKENDS.get(alias)
    if configuration is None:
        raise UnknownBackend(alias)
    with _lock:
        known = _instances.get(alias)
        if known is None or known[0] != configuration:
            known = _instances[alias] = configuration, _make(alias, **configuration)
        return known[1]


def _make(alias: str, BACKEND: str, OPTIONS: dict[str, Any] | None = None) -> BaseBackend:  # noqa: N803
    backend = import_string(BACKEND)
    if not (isinstance(backend, type) and issubclass(backend, BaseBackend)):
        raise ImproperlyConfigured(f"{BACKEND} of the backend {alias!r} is no BaseBackend.")
    return backend(alias, OPTIONS or {})

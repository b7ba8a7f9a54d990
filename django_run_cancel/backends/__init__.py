"""Backends: adapters that send runs to an executor and stop them there. One class per executor."""

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
    """Return the backend with this alias. It is created once for each configuration.

    Args:
        alias: A key of ``RUN_CANCEL_BACKENDS``.

    Raises:
        UnknownBackend: The setting has no such alias.
        ImproperlyConfigured: The class is not a BaseBackend, or refuses the options.
        ImportError: The class or the package of the executor cannot be imported.
    """
    configuration = settings.BACKENDS.get(alias)
    if configuration is None:
        raise UnknownBackend(alias)
    with _lock:
        cached = _instances.get(alias)
        if cached is None or cached[0] != configuration:
            cached = _instances[alias] = configuration, _create(alias, **configuration)
        return cached[1]


def _create(alias: str, BACKEND: str, OPTIONS: dict[str, Any] | None = None) -> BaseBackend:  # noqa: N803  # keys of the setting
    backend = import_string(BACKEND)
    if not (isinstance(backend, type) and issubclass(backend, BaseBackend)):
        raise ImproperlyConfigured(f"{BACKEND} of the backend {alias!r} is no BaseBackend.")
    return backend(alias, OPTIONS or {})

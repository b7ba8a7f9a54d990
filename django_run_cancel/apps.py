"""The app configuration: what is registered and imported at start."""

from __future__ import annotations

import sys

from django.apps import AppConfig
from django.utils.module_loading import import_string
from django.utils.translation import gettext_lazy as _


class RunCancelConfig(AppConfig):
    """Configuration of the app."""

    name = "django_run_cancel"
    verbose_name = _("Run cancellation")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks and the schema extensions."""
        from django_run_cancel import checks  # noqa: F401
        from django_run_cancel.api import schema  # noqa: F401

        _import_task_classes()


def _import_task_classes() -> None:
    """Import our class of tasks where a Celery app names it; the app does so at its first task.

    A process may publish by name before that, and the runs are created by a signal receiver.
    """
    if (state := sys.modules.get("celery._state")) is None:
        return
    for app in state._get_active_apps():
        if isinstance(app.task_cls, str) and app.task_cls.startswith("django_run_cancel."):
            import_string(app.task_cls.replace(":", "."))

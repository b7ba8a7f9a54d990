"""The app configuration: registers system checks."""

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
        """Register the system checks."""
        from django_run_cancel import checks  # noqa: F401

        _import_task_classes()


def _import_task_classes() -> None:
    """Import the task class that a Celery app names, which connects its signal receivers.

    The app itself imports the class only with its first task, but a process may publish a task by
    its name before that; without the receiver that task would have no run.
    """
    if (state := sys.modules.get("celery._state")) is None:
        return
    for app in state._get_active_apps():
        if isinstance(app.task_cls, str) and app.task_cls.startswith("django_run_cancel."):
            import_string(app.task_cls.replace(":", "."))

"""The app."""

from __future__ import annotations

from django.apps import AppConfig
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

"""The run model of this project, and the manager and queryset of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

from django.apps import apps
from django.db import models, router

from django_run_cancel.conf import settings
from django_run_cancel.states import ACTIVE, TERMINAL

if TYPE_CHECKING:
    from django_run_cancel.models.runs import AbstractRun

R = TypeVar("R", bound="AbstractRun")


class RunQuerySet(models.QuerySet[R]):
    """Runs by what can still happen to them."""

    def active(self) -> Self:
        """Return the runs that can still be cancelled."""
        return self.filter(status__in=ACTIVE)

    def terminal(self) -> Self:
        """Return the runs that have ended, in whichever way."""
        return self.filter(status__in=TERMINAL)


class RunManager(models.Manager[R]):
    """The manager of runs. Written out, so that types are known without a plugin."""

    def get_queryset(self) -> RunQuerySet[R]:
        return RunQuerySet(self.model, using=self._db)

    def active(self) -> RunQuerySet[R]:
        """Return the runs that can still be cancelled."""
        return self.get_queryset().active()

    def terminal(self) -> RunQuerySet[R]:
        """Return the runs that have ended, in whichever way."""
        return self.get_queryset().terminal()


def get_run_model() -> type[AbstractRun]:
    """Return the run model of this project: ``Run``, or the one in ``RUN_CANCEL_RUN_MODEL``.

    Raises:
        LookupError: The setting names a model that is not installed.
        ValueError: The setting is not of the form ``app_label.ModelName``.
    """
    return apps.get_model(settings.RUN_MODEL, require_ready=False)


def run_rows(**lookups: Any) -> models.QuerySet[Any]:
    """Return the runs as the table that has their status, on the database that is written to.

    Of a subclass with a table of its own it is that of the base: through the subclass, ``update()``
    would look for the status first, and write without asking for it again.
    """
    table = get_run_model()._meta.get_field("status").model
    return table._base_manager.using(router.db_for_write(table)).filter(**lookups)

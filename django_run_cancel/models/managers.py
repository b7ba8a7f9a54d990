"""``get_run_model()``, and the manager and queryset of runs."""

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
    """Queryset of runs, with filters by status."""

    def active(self) -> Self:
        """Return the runs that can still be cancelled."""
        return self.filter(status__in=ACTIVE)

    def terminal(self) -> Self:
        """Return the runs that have ended, in whichever way."""
        return self.filter(status__in=TERMINAL)


class RunManager(models.Manager[R]):
    """Manager of runs. It spells out the queryset's methods for type checkers without plugins."""

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
    """Return a queryset of runs for conditional updates, on the database for writes.

    With multi-table inheritance, its model is the base with the column ``status``. Through the
    subclass, ``update()`` would select the primary keys by the filters first, and then update these
    rows without the filters.
    """
    table = get_run_model()._meta.get_field("status").model
    return table._base_manager.using(router.db_for_write(table)).filter(**lookups)

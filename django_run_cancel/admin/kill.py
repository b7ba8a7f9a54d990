"""Whether a run that is stopping can be killed, and if not why."""

from __future__ import annotations

from django.utils.translation import gettext as _

from django_run_cancel.backends import get_backend
from django_run_cancel.cancellation.force import is_told_by_force, last_delivery
from django_run_cancel.models import AbstractRun
from django_run_cancel.states import Delivery


def why_not_killed(run: AbstractRun) -> str:
    """Return why its executor cannot be told to kill a run that is stopping; blank if it can."""
    if not (run.backend and run.external_id):
        return _("No executor knows this run: only its own checkpoints end it.")
    if not _may_force(run.backend):
        text = _("Its executor (%(backend)s) cannot kill it: only its own checkpoints end it.")
        return text % {"backend": run.backend}
    item = last_delivery(run)
    if item is None or not is_told_by_force(item):
        return ""
    if item.delivery == Delivery.PENDING:
        return _("Its executor is being told to kill it.")
    return _("Its executor has been told to kill it, and has not confirmed yet that it did.")


def _may_force(alias: str) -> bool:
    try:
        return get_backend(alias).can_force
    except Exception:  # noqa: BLE001 - whatever importing it may raise
        return True  # unknown: the delivery worker may have what this process lacks

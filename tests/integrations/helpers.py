"""What the tests of integrations share: the runs of tasks."""

from __future__ import annotations

from typing import Any

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import get_run_model


def run_of(task_id: str) -> Any:
    return get_run_model()._default_manager.get(run_id=task_id)


def cancel(task_id: str) -> None:
    assert cancel_runs([task_id], requested_by="tests").cancelled == [task_id]


def has_status(task_id: str, status: str) -> bool:
    return get_run_model()._default_manager.filter(run_id=task_id, status=status).exists()


def has_runs() -> bool:
    return get_run_model()._default_manager.exists()

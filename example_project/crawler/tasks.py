"""The same job as a Celery task."""

from __future__ import annotations

from celery import shared_task

from crawler.work import work_on
from django_run_cancel.execution import Execution
from django_run_cancel.integrations.celery import RunTask


@shared_task(base=RunTask)  # type: ignore[untyped-decorator]
def crawl(execution: Execution) -> None:
    """Work on a run; it is called with the run id."""
    work_on(execution)

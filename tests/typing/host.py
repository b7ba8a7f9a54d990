"""How hosts use the public functions. It is type-checked, and not run."""

from __future__ import annotations

from datetime import datetime
from typing import assert_type

from django.http import HttpRequest, HttpResponse

from django_run_cancel.cancellation import CancelResult, cancel_runs
from django_run_cancel.delivery import DeliveryReport, deliver_due, dispatch
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import Execution, checkpoint, current_run, execution
from django_run_cancel.models import AbstractRun, get_run_model


class CrawlRun(AbstractRun):
    class Meta(AbstractRun.Meta):
        app_label = "host"


def cancel_all(request: HttpRequest) -> HttpResponse:
    run_ids = [run.run_id for run in get_run_model().objects.active()]
    result = cancel_runs(run_ids, requested_by=request.user, reason="Disk full")
    assert_type(result, CancelResult)
    assert_type(result.cancelled, list[str])
    return HttpResponse(", ".join(result.failed))


def cancel_one(request: HttpRequest, run: CrawlRun) -> bool:
    result = run.cancel(requested_by=request.user, reason="Disk full", force=True)
    assert_type(result, CancelResult)
    return CrawlRun.objects.active().exists()


def fields(run: AbstractRun) -> None:
    assert_type(run.run_id, str)
    assert_type(run.status, str)
    assert_type(run.title, str)
    assert_type(run.created_at, datetime)
    assert_type(run.finished_at, datetime | None)
    run.mark_failed("Disk full")


def start(title: str) -> None:
    run = get_run_model().objects.create(title=title)
    dispatch(run, "celery", task="app.crawl", args=["https://example.org"])
    assert_type(deliver_due(), DeliveryReport)


def work(run_id: str) -> None:
    try:
        with execution(run_id) as run:
            assert_type(run, Execution)
            for page in run.each(["a", "b"]):
                assert_type(page, str)
            checkpoint()
    except RunCancelled as error:
        assert_type(error.run_id, str)
    current = current_run()
    if current is not None:
        assert_type(current.run, AbstractRun)


async def work_async(run_id: str) -> None:
    async with execution(run_id) as run:
        assert_type(run, Execution)

"""Tasks for the tests, on our side and in the worker."""

from __future__ import annotations

import asyncio

from procrastinate import JobContext, RetryStrategy
from procrastinate.contrib.django import app

from django_run_cancel.execution import execution
from django_run_cancel.integrations.procrastinate import ends_cancelled
from django_run_cancel.testing import jobs


@app.task(name="crawl", retry=RetryStrategy(max_attempts=jobs.TRIES - 1, wait=1), pass_context=True)
def crawl(context: JobContext, run_id: str) -> None:
    def tried_again(error: BaseException) -> bool:
        return context.task.get_retry_exception(error, context.job) is not None

    with ends_cancelled(), execution(run_id, requeue_on=tried_again) as current:
        jobs.run_job(current)


@app.task(name="crawl_async")
async def crawl_async(run_id: str) -> None:
    """Never ask."""
    with ends_cancelled():
        async with execution(run_id):
            jobs.trace(run_id, "started")
            try:
                await asyncio.sleep(60)
            finally:
                jobs.trace(run_id, "left")


@app.task(name="crawl_page")
def crawl_page(run_id: str, page: str) -> None:
    with execution(run_id):
        jobs.trace(run_id, f"page {page}")

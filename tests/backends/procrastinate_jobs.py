"""Tasks for the tests, on our side and in the worker."""

from __future__ import annotations

import asyncio

from procrastinate import JobContext, RetryStrategy
from procrastinate.contrib.django import app

from django_run_cancel.backends.procrastinate import abort_refused
from django_run_cancel.worker import execution
from tests.backends import jobs


@app.task(name="crawl", retry=RetryStrategy(max_attempts=jobs.TRIES - 1, wait=1), pass_context=True)
def crawl(context: JobContext, run_id: str) -> None:
    def tried_again(error: BaseException) -> bool:
        return context.task.get_retry_exception(error, context.job) is not None

    with abort_refused(), execution(run_id, requeue_on=tried_again) as current:
        jobs.body(current)


@app.task(name="crawl_async")
async def crawl_async(run_id: str) -> None:
    """Never ask."""
    with abort_refused():
        async with execution(run_id):
            jobs.trace(run_id, "started")
            try:
                await asyncio.sleep(60)
            finally:
                jobs.trace(run_id, "left")

"""The second part: work that is really going on stops, in one way or the other."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from config import settings
from crawler.crawls import start_crawl
from crawler.local_site import LocalSite, local_site
from crawler.models import Site
from crawler.processes import stop_jobs, workers
from crawler.work import STUBBORN

from demo.client import Client, Runs
from demo.report import POLL_SECONDS, expect, heading, show_answer, wait_until
from django_run_cancel.delivery import dispatch
from django_run_cancel.models import Run

PAGES = 19
SLOW_SECONDS = 300
"""How long the pages would take. The demo does not wait for one."""

SENTENCES = {
    "stopping": "cancelled, stopping",
    "never_started": "stopped (never started)",
    "acknowledged": "stopped (acknowledged)",
    "killed": "stopped (killed)",
    "presumed": "stopped (presumed)",
}


def start_workers(stack: ExitStack, folder: Path, tenant: str) -> LocalSite:
    """Start all that the work needs.

    Args:
        stack: Takes what has to be undone at the end.
        folder: Where logs go.
        tenant: Whose runs there will be.

    Returns:
        The site to crawl.
    """
    heading("Real work")
    site = stack.enter_context(local_site(PAGES, SLOW_SECONDS))
    if settings.CELERY_BROKER_URL:
        stack.callback(delete_queue)
    stack.callback(stop_jobs, Run.objects.filter(tenant=tenant), force=True)
    stack.enter_context(workers("--interval", str(POLL_SECONDS), folder=folder))
    print(f"Site      {site.url}, with {PAGES} pages that take minutes each")
    print(f"Executor  {settings.CRAWLER_BACKEND}")
    print("Worker    manage.py deliver_cancellations")
    return site


def delete_queue() -> None:
    """Leave nothing in the broker."""
    from config.celery import app  # Celery need not be installed if it is not used

    with app.connection_for_write() as connection:
        queue = app.amqp.queues[settings.CELERY_TASK_DEFAULT_QUEUE].bind(connection.default_channel)
        # Declared, because what this connection does not know of it would be left.
        queue.declare()
        queue.delete()


def stop_crawl(client: Client, site: LocalSite, tenant: str) -> None:
    """Cancel a crawl while it runs, and show how it and its pages stop.

    Raises:
        DemoFailed: An expectation does not hold.
    """
    # Not saved: nobody is to crawl it once more.
    crawl = start_crawl(Site(name="the local site", base_url=site.url, customer=tenant))

    def runs() -> Runs:
        return {crawl.run_id: client.run(crawl.run_id)} | client.runs(parent=crawl.run_id)

    def working(runs: Runs) -> list[str]:
        return [run_id for run_id, run in runs.items() if run["status"] == "running"]

    def crawling() -> bool:
        return len(working(runs())) == PAGES + 1 and site.sending == PAGES

    wait_until(crawling, f"{PAGES + 1} runs are running")
    before = runs()
    running = working(before)
    expect(len(running) == PAGES + 1, f"{PAGES + 1} runs are running: a crawl, and pages it found")
    expect(site.sending == PAGES, f"the site is sending {PAGES} pages at this moment")

    heading("The crawl is cancelled")
    print(f'POST /v1/runs/cancel {{"run_ids": ["{crawl.run_id}"]}}')
    answer = client.call("/v1/runs/cancel", {"run_ids": [crawl.run_id]})
    show_answer(answer)
    wait_until(lambda: not stopping(runs()), "no run is stopping any more")
    wait_until(lambda: site.sending == 0, "the site sends nothing any more")
    cancellation_id = answer.headers["Cancellation-Id"]
    wait_until(lambda: told(client, cancellation_id, crawl.run_id), "the executor has been told")
    after = runs()
    heading("How each of the runs went from running to stopped")
    show_ways(after[run_id] for run_id in running)

    heading("Checked")
    stopped = [after[run_id] for run_id in running]
    expect(
        all(run["cancellation_id"] == cancellation_id for run in stopped),
        f"the request named the crawl, and cancelled its {PAGES} pages with it",
    )
    expect(
        {run["stop_state"] for run in stopped} == {"acknowledged"},
        "the code of all of them has stopped by itself, and said so",
    )
    expect(site.sending == 0, "the site sends nothing any more: all connections are closed")
    others = after.keys() - set(running)
    expect(
        bool(others) and all(before.get(run_id) == after[run_id] for run_id in others),
        f"the {len(others)} pages that had been fetched are untouched, and none came after",
    )


def stop_stubborn(client: Client, site: LocalSite, tenant: str) -> None:
    """Cancel a run whose code does not listen, and show how it is killed.

    Raises:
        DemoFailed: An expectation does not hold.
    """
    heading("A run that does not listen")
    run = Run.objects.create(
        run_type=STUBBORN,
        tenant=tenant,
        title="Swallows every exception",
        metadata={"url": f"{site.url}catalogue?page=1"},
    )
    dispatch(run, settings.CRAWLER_BACKEND)
    wait_until(lambda: site.sending == 1, "the run is reading a page")
    print(f"POST /v1/runs/{run.run_id}/cancel")
    answer = client.call(f"/v1/runs/{run.run_id}/cancel", {"reason": "Nobody needs it."})
    cancellation_id = answer.headers["Cancellation-Id"]
    start = time.monotonic()

    def note(event: str) -> None:
        print(f"{time.monotonic() - start:5.1f} s  {event}", flush=True)

    note(SENTENCES[answer.body["stop_state"]])
    wait_until(lambda: told(client, cancellation_id, run.run_id), "the executor has been told")
    note("its executor has been told; the code goes on")
    wait_until(lambda: not stopping({"": client.run(run.run_id)}), "the run has stopped")
    after = client.run(run.run_id)
    note(SENTENCES[after["stop_state"]])
    wait_until(lambda: site.sending == 0, "the site sends nothing any more")

    heading("Checked")
    grace = settings.RUN_CANCEL_GRACE_SECONDS
    expect(after["stop_state"] == "killed", "it was killed, and its executor has confirmed that")
    expect(seconds_to_stop(after) >= grace, f"not before it had had {grace:g} seconds to stop")
    expect(site.sending == 0, "the site sends nothing any more: its connection is closed")


def stopping(runs: Runs) -> list[str]:
    """Return the ids of the runs of which nobody knows yet whether they have stopped."""
    return [run_id for run_id, run in runs.items() if run["stop_state"] == "stopping"]


def told(client: Client, cancellation_id: str, run_id: str) -> bool:
    """Return whether the executor of a run has been told at least once."""
    items = client.list(f"/v1/cancellations/{cancellation_id}/items")
    return any(item["run_id"] == run_id and item["attempts"] for item in items)


def seconds_to_stop(run: dict[str, Any]) -> float:
    """Return how long a run went on after it had been cancelled."""
    return (moment(run["stopped_at"]) - moment(run["finished_at"])).total_seconds()


def moment(text: str) -> datetime:
    """Read a moment as the API writes it."""
    return datetime.fromisoformat(text)


def show_ways(runs: Iterable[dict[str, Any]]) -> None:
    """Print when each run started, was cancelled and stopped, by the clock of the day in UTC."""
    row = "{:<26}{:<14}{:<14}{:<14}{:>6}  {}".format
    print(row("run", "running", "cancelled", "stopped", "after", "how"))
    for run in sorted(runs, key=lambda run: run["started_at"]):
        times = (moment(run[f"{name}_at"]) for name in ("started", "finished", "stopped"))
        print(
            row(
                run["title"],
                *(f"{time:%H:%M:%S}.{time.microsecond // 1_000:03}" for time in times),
                f"{seconds_to_stop(run):.2f} s",
                SENTENCES[run["stop_state"]],
            )
        )

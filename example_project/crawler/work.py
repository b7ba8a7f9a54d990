"""Which work a run stands for."""

from __future__ import annotations

import time

from crawler.crawls import CHUNK_BYTES, crawl_site
from crawler.pages import open_page
from django_run_cancel.execution import Execution
from django_run_cancel.states import RunType

STUBBORN = "stubborn"
"""A type of run that does not stop when it should. The demo has one, to be killed."""

STUBBORN_SECONDS = 120


def work_on(execution: Execution) -> None:
    """Do the work of a run, whichever executor has been given it."""
    WORK[execution.run.run_type](execution)


def be_stubborn(execution: Execution) -> None:
    """Fetch a page as no code should: what says that nobody wants it any more is swallowed."""
    end = time.monotonic() + STUBBORN_SECONDS
    with open_page(execution.run.metadata["url"]) as response:
        while time.monotonic() < end:
            try:
                if not response.read1(CHUNK_BYTES):
                    return
                execution.checkpoint()
            except BaseException:  # noqa: BLE001, S110 - RunCancelled and SystemExit among others
                pass


WORK = {RunType.WORKFLOW: crawl_site, STUBBORN: be_stubborn}

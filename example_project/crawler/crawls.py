"""Crawls: a workflow run per crawl, and below it a task run per page."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import chain
from threading import Event

from config import settings
from django.db import connections, transaction

from crawler.models import Site
from crawler.pages import find_links, open_page
from django_run_cancel.delivery import dispatch
from django_run_cancel.execution import Execution, execution
from django_run_cancel.models import AbstractRun, Run
from django_run_cancel.states import WAITING, RunType

PAGES_AT_ONCE = 20
MAX_PAGES = 200
CHUNK_BYTES = 65_536
CHECK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class CrawlOver(Exception):
    """The crawl ends before all of its pages are there."""


def start_crawl(site: Site) -> Run:
    """Queue a crawl.

    Args:
        site: What to crawl: the page at its base URL, and what is linked from there and below it.

    Returns:
        The workflow. Cancelling it cancels its pages, too.
    """
    with transaction.atomic():
        crawl = create_crawl(site)
        dispatch(crawl, settings.CRAWLER_BACKEND)
    return crawl


def create_crawl(site: Site) -> Run:
    """Create a crawl and its first page, without telling anybody to do it."""
    crawl: Run = Run.objects.create(
        run_type=RunType.WORKFLOW,
        tenant=site.customer,
        title=f"Crawl of {site.name}",
        metadata={"site": site.pk, "url": site.base_url},
    )
    add_page(crawl, site.base_url)
    return crawl


def add_page(crawl: AbstractRun, url: str) -> AbstractRun:
    """Queue a page of a crawl.

    Raises:
        RunCancelled: The crawl is cancelled.
    """
    # Not Run.objects.create(parent=crawl): that could add a page to a crawl which is being
    # cancelled, and the page would escape.
    page = crawl.create_child(
        title=f"Fetch /{url.removeprefix(crawl.metadata['url'])}"[:200], metadata={"url": url}
    )
    page.mark_queued()
    return page


def crawl_site(execution: Execution) -> None:
    """Fetch the pages of a crawl, many at a time: the job that an executor does.

    Raises:
        RunCancelled: The crawl has been cancelled.
    """
    crawl = execution.run
    pages = list(Run.objects.filter(parent_id=crawl.pk))
    known = {page.metadata["url"] for page in pages}
    over = Event()
    with ThreadPoolExecutor(PAGES_AT_ONCE) as pool:
        try:
            pending = {
                pool.submit(work_on_page, page.run_id, over)
                for page in pages
                if page.status in WAITING
            }
            while pending:
                execution.checkpoint()
                done, pending = wait(pending, CHECK_SECONDS, FIRST_COMPLETED)
                for url in chain.from_iterable(future.result() for future in done):
                    if (
                        url.startswith(crawl.metadata["url"])
                        and url not in known
                        and len(known) < MAX_PAGES
                    ):
                        known.add(url)
                        page = add_page(crawl, url)
                        pending.add(pool.submit(work_on_page, page.run_id, over))
        finally:
            # The pool waits for its threads, whatever has ended the crawl.
            over.set()


def work_on_page(run_id: str, over: Event) -> list[str]:
    """Execute the run of a page, in a thread.

    Args:
        run_id: Its public id.
        over: Set when the crawl is not to go on.

    Returns:
        The URLs that the page links to; none if it was not fetched, which its run explains.
    """
    try:
        with execution(run_id) as page:
            return fetch_page(page, over)
    except Exception:
        logger.info("The page of the run %s was not fetched.", run_id, exc_info=True)
        return []
    finally:
        # Django opens connections for each thread, and closes them for requests only.
        connections.close_all()


def fetch_page(execution: Execution, over: Event) -> list[str]:
    """Fetch a page.

    Returns:
        The URLs that it links to.

    Raises:
        RunCancelled: The run of the page has been cancelled.
        CrawlOver: The crawl has ended.
    """
    page = execution.run
    html = b""
    with open_page(page.metadata["url"]) as response:
        # What has come so far: read() would wait for more, and no checkpoint be reached.
        while chunk := response.read1(CHUNK_BYTES):
            execution.checkpoint()
            if over.is_set():
                raise CrawlOver("The crawl does not go on.")
            html += chunk
    page.metadata["bytes"] = len(html)
    page.save(update_fields=["metadata"])
    return find_links(page.metadata["url"], html.decode(errors="replace"))

"""Crawls: a workflow run per crawl, and below it a task run per page."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urljoin

from django.db import transaction

from crawler.models import Site
from django_run_cancel.models import Run
from django_run_cancel.states import RunType


def start_crawl(site: Site, pages: Iterable[str]) -> Run:
    """Queue a crawl.

    Args:
        site: What to crawl.
        pages: Paths of the pages to fetch, below the site's base URL.

    Returns:
        The workflow. Cancelling it cancels the pages that have not been fetched.
    """
    with transaction.atomic():
        crawl = Run.objects.create(
            run_type=RunType.WORKFLOW,
            tenant=site.customer,
            title=f"Crawl of {site.name}",
            metadata={"site": site.pk},
        )
        crawl.mark_queued()
        for page in pages:
            # Not Run.objects.create(parent=crawl): that could add a page to a crawl which is
            # being cancelled, and the page would escape.
            task = crawl.create_child(
                title=f"Fetch {page}"[:200],
                metadata={"site": site.pk, "url": urljoin(site.base_url, page)},
            )
            task.mark_queued()
    return crawl

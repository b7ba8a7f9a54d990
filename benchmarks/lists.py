"""How long lists, searches and previews take on a large table: the admin's pages, and the API's.

Run it with ``python -m benchmarks.lists [--runs N] [--save]``: as many active runs among as many
others.
``DATABASE_URL`` chooses the database; the rows live in a test database. The requests go through
Django's test client, as a superuser. On PostgreSQL, the search indexes are created first.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.figures import Figures, arguments, own_database

BATCH = 10_000
CHILDREN = 10_000
CANCELLATIONS = 10_000
ROUNDS = 10
EPOCH = "2026-01-01T00:00:00+00:00"

Question = Callable[[], Any]


def main() -> None:
    given = arguments(__doc__, runs=1_000_000)
    figures = Figures("lists", "asked", "statements", "database ms", "median ms", "p95 ms")
    with own_database():
        from django.conf import settings
        from django.core.management import call_command
        from django.db import connection

        settings.ALLOWED_HOSTS = ["testserver"]
        fill(given.runs)
        if connection.vendor == "postgresql":
            call_command("create_search_indexes", verbosity=0, stdout=io.StringIO())
            with connection.cursor() as cursor:
                cursor.execute("VACUUM ANALYZE")
        for name, question in questions(given.runs):
            figures.add(name, *measured(question))
        if given.save:
            figures.save()


def measured(question: Question) -> tuple[int, ...]:
    """Return the statements, the time in the database, and median and p95 of some rounds."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        question()
        times.append((time.perf_counter() - started) * 1_000)
    with CaptureQueriesContext(connection) as captured:
        question()
    in_database = sum(float(entry["time"]) for entry in captured) * 1_000
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
    return len(captured), round(in_database), round(statistics.median(times)), round(p95)


def fill(count: int) -> None:
    """Make runs of many tenants, types and titles, a large family, cancellations and items."""
    from datetime import datetime, timedelta

    from django_run_cancel.models import Cancellation, CancellationItem, get_run_model

    model = get_run_model()
    epoch = datetime.fromisoformat(EPOCH)
    records = Cancellation.objects.bulk_create(
        Cancellation(
            requested_by=f"user-{number % 500}",
            source=("api", "admin", "command")[number % 3],
            reason=f"Incident {number}: disk full",
            requested_at=epoch + timedelta(minutes=number),
            state="completed",
        )
        for number in range(CANCELLATIONS)
    )
    parent = model._base_manager.create(run_id="family", status="running", created_at=epoch)
    for start in range(0, 2 * count, BATCH):
        numbers = range(start, min(start + BATCH, 2 * count))
        runs = [run_of(model, number, epoch, records) for number in numbers]
        if start == 0:
            for run in runs[:CHILDREN]:
                run.parent = parent
        model._base_manager.bulk_create(runs)
        CancellationItem.objects.bulk_create(
            CancellationItem(
                cancellation=run.cancellation,
                run_id=run.run_id,
                outcome="cancelled",
                via="requested",
                previous_status="running",
                backend="dummy",
                external_id=run.external_id,
                delivery="failed" if number % 2_000 == 3 else "delivered",
            )
            for number, run in zip(numbers, runs, strict=True)
            if run.cancellation is not None
        )


def run_of(model: Any, number: int, epoch: Any, records: list[Any]) -> Any:
    """Return a run: every second one is active, the others are completed, failed or cancelled."""
    from datetime import timedelta

    is_cancelled = number % 10 == 3
    status = ("queued", "completed", "running", "failed")[number % 4]
    created = epoch + timedelta(seconds=5 * number)
    return model(
        run_id=f"tsk_{number:032}",
        external_id=f"job-{number}",
        backend="dummy",
        title=f"project.tasks.crawl page {number} of library {number % 1_000}",
        run_type="workflow" if number % 50 == 0 else "task",
        tenant=f"tenant-{number % 40}",
        metadata={"customer": number % 10},
        status="cancelled" if is_cancelled else status,
        stop_state=("" if not is_cancelled else "killed" if number % 100 == 3 else "acknowledged"),
        cancellation=records[number % len(records)] if is_cancelled else None,
        created_at=created,
        finished_at=None if status in {"queued", "running"} else created,
        stopped_at=created if is_cancelled else None,
    )


def questions(count: int) -> Iterator[tuple[str, Question]]:
    """Yield what is asked, each with its name."""
    from django.contrib.auth import get_user_model
    from django.test import Client
    from django.urls import reverse

    from django_run_cancel.models import get_run_model

    client = Client()
    client.force_login(get_user_model().objects.create_superuser("benchmark"))
    run = get_run_model()._meta
    list_of_runs = reverse(f"admin:{run.app_label}_{run.model_name}_changelist")

    def asked(url: str) -> Question:
        def ask() -> None:
            answer = client.get(url)
            assert answer.status_code == 200, (url, answer)

        return ask

    for name, query in runs_of_admin(count).items():
        yield f"runs, {name}", asked(list_of_runs + query)
    for name, query in CANCELLATIONS_OF_ADMIN.items():
        address = reverse("admin:django_run_cancel_cancellation_changelist")
        yield f"cancellations, {name}", asked(address + query)
    for name, query in ITEMS_OF_ADMIN.items():
        address = reverse("admin:django_run_cancel_cancellationitem_changelist")
        yield f"items, {name}", asked(address + query)
    family = get_run_model()._base_manager.get(run_id="family")
    page = reverse(f"admin:{run.app_label}_{run.model_name}_change", args=[family.pk])
    yield f"page of a run with {CHILDREN:,} children", asked(page)
    yield (
        "page that asks before all queued are cancelled",
        asked(f"{list_of_runs}cancel-all/?status=queued"),
    )
    for name, query in runs_of_api(count).items():
        yield f"GET /v1/runs, {name}", asked("/v1/runs" + query)
    for name, query in CANCELLATIONS_OF_API.items():
        yield f"GET /v1/cancellations, {name}", asked("/v1/cancellations" + query)
    yield from previews(count)


def runs_of_admin(count: int) -> dict[str, str]:
    return {
        "all": "",
        "page 2": "?p=2",
        "last page": f"?p={min(100, count // 50)}",
        "oldest first": "?o=4",
        "active": "?status=active",
        "queued": "?status=queued",
        "completed": "?status=completed",
        "failed": "?status=failed",
        "cancelled": "?status=cancelled",
        "stopping (none)": "?status=stopping",
        "killed": "?stop_state=killed",
        "of a type": "?run_type=workflow",
        "of a tenant": "?tenant=tenant-7",
        "of a tenant, active": "?tenant=tenant-7&status=active",
        "created on a day": "?created_at__gte=2026-01-02T00:00Z&created_at__lt=2026-01-03T00:00Z",
        "children": "?parent__exact=1",
        "search: beginning of an id": f"?q=tsk_{count // 10:029}",
        "search: words of a title": f"?q=library+{count // 2}",
        "search: a word of all titles": "?q=crawl",
        "search: external id": f"?q=job-{count}",
        "search: nothing is found": "?q=lighthouse",
        "search: a word too short for trigrams": "?q=of",
        "search: words among the queued": "?q=library+777&status=queued",
    }


CANCELLATIONS_OF_ADMIN = {
    "all": "",
    "of the admin": "?source__exact=admin",
    "last page": "?p=100",
    "search: who asked": "?q=user-77",
    "search: the reason": "?q=incident+4711",
    "search: beginning of all ids": "?q=can_",
    "search: id of a run": f"?q=tsk_{1_003:032}",
    "search: nothing is found": "?q=lighthouse",
}

ITEMS_OF_ADMIN = {
    "all": "",
    "page 2": "?p=2",
    "failed deliveries": "?delivery__exact=failed",
    "delivered": "?delivery__exact=delivered",
    "pending deliveries (none)": "?delivery__exact=pending",
    "handlers failed (none)": "?handling__exact=failed",
    "of a cancellation": "?cancellation__exact=14",
    "search: beginning of an id": f"?q=tsk_{100:031}",
    "search: nothing is found": "?q=lighthouse",
}


def runs_of_api(count: int) -> dict[str, str]:
    return {
        "all": "",
        "queued": "?status=queued",
        "active": "?status=created&status=queued&status=running&status=paused",
        "completed": "?status=completed",
        "cancelled": "?status=cancelled",
        "of a type": "?type=workflow",
        "children": "?parent=family",
        "created since": "?created_after=2026-01-02T00:00:00Z",
        "created before, completed": "?created_before=2026-01-02T00:00:00Z&status=completed",
    }


CANCELLATIONS_OF_API = {"all": "", "100 on a page": "?page_size=100"}


def previews(count: int) -> Iterator[tuple[str, Question]]:
    """Yield previews of bulk cancellations."""
    from datetime import datetime, timedelta

    from django_run_cancel.cancellation import preview_bulk_cancellation
    from django_run_cancel.cancellation.filters import filter_runs
    from django_run_cancel.models import get_run_model

    runs = get_run_model()._base_manager.all()
    since = datetime.fromisoformat(EPOCH)
    filters: dict[str, dict[str, Any]] = {
        "status": {"status": ["queued"]},
        "title": {"title": f"project.tasks.crawl page {count} of library {count % 1_000}"},
        "created": {"created_after": since, "created_before": since + timedelta(days=1)},
        "metadata": {"metadata": {"customer": 4}},
        "metadata (none)": {"metadata": {"customer": 11}},
        "tenant": {"tenant": "tenant-6"},
        "type": {"type": "workflow"},
        "children": {"parent": "family"},
        "descendants": {"ancestor": "family"},
    }
    for name, values in filters.items():

        def preview(values: dict[str, Any] = values) -> None:
            preview_bulk_cancellation(filter_runs(runs, values), requested_by="benchmark")

        yield f"preview, by {name}", preview


if __name__ == "__main__":
    main()

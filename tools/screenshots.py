"""``make screenshots``: the pages of the admin as docs and README show them.

The example project is served from a temporary database. Nothing comes from another host.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
SIZE = {"width": 1280, "height": 800}


def prepare(folder: str) -> None:
    """Set Django up as the example does, with runs to look at."""
    os.environ |= {
        "DATABASE_URL": f"sqlite:///{folder}/shots.sqlite3",
        "DJANGO_SETTINGS_MODULE": "config.settings",
        # The browser's event loop makes Django think that this is asynchronous code.
        "DJANGO_ALLOW_ASYNC_UNSAFE": "true",
    }
    sys.path.insert(0, str(ROOT / "example_project"))
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    call_command("seed_demo", verbosity=0)
    make_crawls()


def make_crawls() -> None:
    """Create crawls that are half done. Nothing executes them: the pictures are always the same."""
    from django_run_cancel.models import Run

    for site in ("Harbour library", "City museum"):
        crawl = Run.objects.create(run_type="workflow", tenant="acme", title=f"Crawl of {site}")
        crawl.mark_running()
        for number, status in enumerate(("completed", "failed", "running", "running", "queued"), 1):
            page = crawl.create_child(title=f"Fetch /catalogue?page={number}")
            for step in ("queued", "running", status)[: 1 if status == "queued" else 3]:
                if step != page.status:
                    page.transition_to(step)


def make_incident() -> None:
    """Let runs go on stopping for half an hour, as their executor could not be told."""
    from datetime import timedelta

    from django.utils import timezone

    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.models import CancellationItem, Run

    exports = [
        Run.objects.create(title=f"Export of the ledger {year}") for year in range(2022, 2026)
    ]
    for run in exports:
        run.mark_running()
    record = cancel_runs(
        [run.run_id for run in exports], requested_by="night watch", reason="Disk full"
    ).cancellation
    past = timezone.now() - timedelta(minutes=34, seconds=30)
    Run.objects.filter(cancellation=record).update(created_at=past, finished_at=past)
    CancellationItem.objects.filter(cancellation=record).update(
        delivery="failed", last_error="Connection refused"
    )


def take() -> None:
    """Walk through a cancellation and keep a picture of each page."""
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.db import connections
    from django.test.testcases import LiveServerThread
    from playwright.sync_api import sync_playwright

    from django_run_cancel.models import Run
    from tests.browser.helpers import chromium

    server = LiveServerThread("127.0.0.1", StaticFilesHandler, connections_override={})
    server.daemon = True
    server.start()
    server.is_ready.wait()
    url = f"http://127.0.0.1:{server.port}/admin/"
    workflow = Run.objects.filter(run_type="workflow").active().latest("pk")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page = context.new_page()

        def shoot(name: str, *, full_page: bool = False) -> None:
            page.evaluate("scrollTo(0, 0)")
            path = IMAGES / f"{name}.png"
            page.screenshot(path=path, animations="disabled", full_page=full_page)

        page.goto(url)
        page.fill("#id_username", "operator")
        page.fill("#id_password", "operator")
        page.click("[type=submit]")
        runs = f"{url}django_run_cancel/run/"
        page.goto(f"{runs}?status=active")
        page.locator("#toggle-nav-sidebar").click()
        for box in page.locator("input.action-select").all()[:4]:
            box.check()
        page.select_option("select[name=action]", "cancel_selected")
        shoot("list")
        page.click("button[name=index]")
        page.get_by_label("Reason").fill("The catalogue has moved; these pages are not needed.")
        shoot("confirm")
        page.emulate_media(color_scheme="dark")
        shoot("dark")
        page.emulate_media(color_scheme="light")
        page.get_by_role("button", name="Yes, cancel").click()
        page.locator(".run-cancel-items").wait_for()
        shoot("cancellation")
        page.goto(f"{runs}by-run-id/?run_id={workflow.run_id}")
        shoot("run")
        make_incident()
        page.goto(f"{runs}?stop_state=stopping")
        shoot("incident")
        browser.close()
    server.terminate()
    connections.close_all()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        prepare(made)
        take()

"""Pages about rows whose texts are HTML, scripts, templates and control characters."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.urls import URLPattern, reverse

from django_run_cancel.cancellation import Origin, cancel_runs
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, get_run_model
from tests.admin.helpers import CANCEL, KEYS, KILL, LIST, RECORDS, logged_in
from tests.helpers import make_run

pytestmark = pytest.mark.django_db

HTML = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 }}{% x %}\x1b[31m\u202e"

BREAKS_OUT = ("<script>alert", "<img src=x", "<b>", "<i>", "\"'>", 'href="javascript:')


@pytest.fixture
def rows() -> None:
    texts = {"title": HTML, "run_type": "<b>type", "tenant": "<b>tenant", "metadata": {HTML: HTML}}
    executor = {"backend": "<i>backend", "external_id": "<i>external", "failure_reason": HTML}
    parent = make_run("running", **texts, **executor)
    run = make_run("running", parent=parent, run_id="<b>id", **texts)
    make_run("running", parent=run, **texts)
    make_run(**texts)
    origin = Origin(request_id="<i>request")
    cancel_runs(["<b>id", "<b>no"], requested_by=HTML, reason=HTML, origin=origin)
    failed = {"delivery": "failed", "handling": "failed"}
    CancellationItem.objects.update(last_error=HTML, handling_error=HTML, **failed)
    ApiKey.issue("<b>name", tenant="<b>tenant")


def pages() -> list[str]:
    urls = [
        *(f"{LIST}?q=%3Cb%3E", f"{LIST}by-run-id/?run_id=%3Cb%3Eno", f"{KILL}?run_id=%3Cb%3Eid"),
        *(f"{CANCEL}?run_id=%3Cb%3Eid&next={url}" for url in ("javascript:x", "//evil.example")),
        *(f"{LIST}cancel-all/?{query}" for query in ("q=%3Cb%3E", "created_at__gte=2026-01-01")),
        *(f"{url}?q=%3Cb%3E" for url in (RECORDS, KEYS)),
    ]
    for model in (get_run_model(), Cancellation, CancellationItem, ApiKey):
        for pattern in admin.site._registry[model].urls:
            if isinstance(pattern, URLPattern) and pattern.name:
                urls += addresses(pattern, model)
    return urls


def addresses(pattern: URLPattern, model: Any) -> list[str]:
    """Return the addresses of a page: one for each row, if it is about a row."""
    name = f"admin:{pattern.name}"
    if "object_id" not in str(pattern.pattern):
        return [reverse(name)]
    return [reverse(name, args=[row.pk]) for row in model.objects.all()]


@pytest.mark.usefixtures("rows")
@pytest.mark.filterwarnings("ignore:DateTimeField")  # as Django's own filters do
def test_texts_stay_texts() -> None:
    chief = logged_in("chief", is_superuser=True)
    urls = pages()
    assert len(urls) > 40
    for url in urls:
        page = chief.get(url)
        assert page.status_code in {200, 302, 403}, url
        shown = page.content.decode()
        assert not [text for text in BREAKS_OUT if text in shown], url

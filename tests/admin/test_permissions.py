"""Which pages of the admin a user without permissions reaches: none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import URLPattern, reverse

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, get_run_model
from tests.admin.helpers import CANCEL, LIST, RECORDS, RUN, hidden, logged_in
from tests.helpers import make_run, statuses

pytestmark = pytest.mark.django_db

MODELS = [get_run_model(), Cancellation, CancellationItem, ApiKey]
BY_RUN_ID = f"admin:{RUN.app_label}_{RUN.model_name}_by_run_id"


def names() -> Iterator[tuple[str, Any]]:
    """Yield the URL names of our pages, with the model of each."""
    for model in MODELS:
        for pattern in admin.site._registry[model].urls:
            if isinstance(pattern, URLPattern) and pattern.name:
                yield pattern.name, model


def url_of(name: str, model: Any) -> str:
    row = model.objects.first()
    needs_key = name.endswith(("_change", "_delete", "_history", "_summary", "_abort", "_retry"))
    return reverse(f"admin:{name}", args=[row.pk] if needs_key else [])


@pytest.fixture
def rows() -> None:
    run = make_run()
    cancel_runs([run.run_id], requested_by="tests")
    ApiKey.issue("CI")


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("name", "model"), list(names()), ids=[name for name, _ in names()])
@pytest.mark.parametrize("method", ["get", "post"])
def test_without_permissions(name: str, model: Any, method: str) -> None:
    url = url_of(name, model)
    anonymous = getattr(Client(), method)(url)
    assert (anonymous.status_code, "login" in anonymous["Location"]) == (302, True)
    assert getattr(logged_in("nobody"), method)(url).status_code == 403


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("name", "model"), list(names()), ids=[name for name, _ in names()])
def test_post_without_csrf_token(name: str, model: Any) -> None:
    chief = logged_in("chief", is_superuser=True)
    chief.handler.enforce_csrf_checks = True
    assert chief.post(url_of(name, model), {"confirmed": "1"}).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PURGE"])
def test_other_methods_change_nothing(method: str) -> None:
    run, record = make_run(), cancel_runs(["tsk_1"], requested_by="tests").cancellation
    assert record is not None
    chief = logged_in("chief", is_superuser=True)
    pages = (CANCEL, f"{LIST}kill/", f"{LIST}cancel-all/", f"{RECORDS}{record.pk}/abort/")
    for page in pages:
        answer = chief.generic(method, f"{page}?run_id={run.run_id}")
        assert answer.status_code in {200, 302, 405}
    assert statuses(run) == ["queued"]


def test_by_run_id__tells_nobody_whether_an_id_exists() -> None:
    run = make_run()
    nobody = logged_in("nobody")
    for run_id in (run.run_id, "tsk_unknown"):
        answer = nobody.get(reverse(BY_RUN_ID), {"run_id": run_id})
        assert answer.status_code == 403
        assert run_id not in answer.content.decode()
    looker = logged_in("looker", "view_run", "view_job")
    assert looker.get(reverse(BY_RUN_ID), {"run_id": run.run_id}).status_code == 302


@pytest.mark.parametrize(
    "run_ids",
    ["[" * 50_000, "[" * 50_000 + "]" * 50_000, "9" * 5_000, "[" + "9" * 5_000 + "]", "nonsense"],
)
def test_confirm__whatever_is_posted_as_ids(run_ids: str) -> None:
    run = make_run()
    chief = logged_in("chief", is_superuser=True)
    form = hidden(chief.get(CANCEL, {"run_id": run.run_id}))
    answer = chief.post(CANCEL, {**form, "run_ids": run_ids})
    assert answer.status_code == 200
    assert answer.context["form"].errors["run_ids"]
    assert statuses(run) == ["queued"]

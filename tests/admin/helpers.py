"""What the tests of the admin share."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from html import unescape
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from tests.helpers import ids, make_runs

RUN = get_run_model()._meta
LIST = f"/admin/{RUN.app_label}/{RUN.model_name}/"
CANCEL = f"{LIST}cancel/"
KILL = f"{LIST}kill/"
RECORDS = "/admin/django_run_cancel/cancellation/"
KEYS = "/admin/django_run_cancel/apikey/"

LOOKS = ("view_run", "view_job", "view_cancellation")
"""Permissions to view all that the admin has of runs and cancellations."""


def logged_in(name: str, *codenames: str, is_superuser: bool = False) -> Client:
    """Return a client of a member of the staff with these permissions."""
    user = get_user_model().objects.create_user(name, is_staff=True, is_superuser=is_superuser)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


def hidden(page: Any) -> dict[str, str]:
    """Return the fields of the form of the page that asks."""
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text(page))
    return {name: unescape(value) for name, value in found}


def text(page: Any) -> str:
    assert page.status_code == 200, page
    return page.content.decode()


def words(page: Any) -> str:
    """Return what a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text(page))).split())


def said(answer: Any) -> list[str]:
    """Return the messages that an answer leaves for the next page, as text."""
    return [re.sub(r"<[^>]+>", "", str(message)).strip() for message in messages_of(answer)]


def messages_of(answer: Any) -> list[Any]:
    return list(get_messages(answer.wsgi_request))


def tick(client: Client, runs: list[Any], query: str = "", **more: Any) -> Any:
    """Send the list with these rows ticked and the action chosen."""
    data = {"action": "cancel_selected", "_selected_action": [run.pk for run in runs], **more}
    return client.post(LIST + query, data)


def confirm(client: Client, page: Any, **fields: str) -> Any:
    """Send the form of the page that asks."""
    return client.post(CANCEL, {**hidden(page), **fields})


def page_of(run: Any) -> str:
    return reverse(f"admin:{RUN.app_label}_{RUN.model_name}_change", args=[run.pk])


def ago(**span: float) -> datetime:
    return timezone.now() - timedelta(**span)


def make_stopping(count: int = 1, *, minutes: float = 34.5, **fields: Any) -> Cancellation:
    """Cancel running runs, some minutes ago. Their executors were told, and did nothing."""
    runs = make_runs(count, "running", **fields)
    record = cancel_runs(ids(runs), requested_by="night watch", reason="Disk full").cancellation
    assert record is not None
    rows = get_run_model()._base_manager.filter(cancellation=record)
    rows.update(finished_at=ago(minutes=minutes), started_at=ago(hours=2.5))
    CancellationItem.objects.filter(cancellation=record).update(delivery="delivered")
    return record

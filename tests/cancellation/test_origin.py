"""Where a request came from, as far as the record keeps it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import RequestFactory

from django_run_cancel.cancellation import CancelResult, cancel_runs
from django_run_cancel.cancellation.bulk import Preview
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.progress import Progress
from django_run_cancel.models import Cancellation
from tests.helpers import ApiClient, make_run


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:DB8::0001", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("", None),
        ("unix:", None),
    ],
)
def test_address(address: str, kept: str | None) -> None:
    assert Origin.of(RequestFactory().get("/", REMOTE_ADDR=address)).ip_address == kept


def test_address_is_that_of_the_connection() -> None:
    request = RequestFactory().get("/", headers={"X-Forwarded-For": "198.51.100.1"})
    assert Origin.of(request).ip_address == "127.0.0.1"
    del request.META["REMOTE_ADDR"]
    assert Origin.of(request) == Origin()


@pytest.mark.parametrize(
    ("header", "kept"), [(" req-7 ", "req-7"), ("x" * 129, ""), ("a\0b", ""), ("\ud800", "")]
)
def test_request_id(header: str, kept: str) -> None:
    request = RequestFactory().get("/", HTTP_X_REQUEST_ID=header)
    assert Origin.of(request).request_id == kept


@pytest.mark.parametrize(
    "fields",
    [
        {"ip_address": "nowhere"},
        {"ip_address": "fe80::1%eth0"},
        {"request_id": "x" * 129},
        {"request_id": "\0"},
    ],
)
def test_what_cannot_be_stored(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Origin(**fields)


@pytest.mark.django_db
def test_record(api: ApiClient) -> None:
    api.cancel(["x"], X_Request_ID="req-7")
    record = Cancellation.objects.get()
    assert (record.ip_address, record.request_id) == ("127.0.0.1", "req-7")
    cancel_runs(["x"], requested_by="x", origin=Origin("2001:db8::1"))
    record = Cancellation.objects.latest("pk")
    assert (record.ip_address, record.request_id) == ("2001:db8::1", "")


@pytest.mark.django_db
def test_record__of_operators_is_not_for_keys(api: ApiClient) -> None:
    run = make_run()
    origin = Origin("10.1.2.3", "req-7")
    record = cancel_runs([run.run_id], requested_by="x", source="admin", origin=origin).cancellation
    Cancellation.objects.update(tenant="")
    chief = ApiClient()
    chief.force_login(get_user_model().objects.create_superuser("chief"))
    for client, expected in ((api, [None, ""]), (chief, ["10.1.2.3", "req-7"])):
        shown = client.get(f"/v1/cancellations/{record}").json()
        assert [shown["ip_address"], shown["request_id"]] == expected


@pytest.mark.django_db
def test_record__of_hostile_headers(api: ApiClient) -> None:
    headers: dict[str, Any] = {"X_Request_ID": "\xff" * 200}
    assert api.cancel(["x"], **headers).status_code == 200
    assert Cancellation.objects.get().request_id == ""


@pytest.mark.parametrize(
    "value",
    [
        Origin(),  # the default of an argument, which all calls share
        CancelResult(None, [], [], []),
        Preview(0, False, CancelResult(None, [], [], [])),
        Progress(0, 0, 0, 0, 0, None, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_and_results__cannot_be_changed(value: Any) -> None:
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)

"""What they may do, and which runs they reach."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import PermissionDenied

from django_run_cancel.api.permissions import default_scope
from django_run_cancel.models import Cancellation
from tests.api.helpers import (
    BULK,
    assert_sound,
    key_client,
    logged_in,
    make_user,
)
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db

READS = ["/v1/runs", "/v1/runs/{run_id}", "/v1/cancellations"]


def only_urgent(request: Any, queryset: Any) -> Any:
    """A host's scope: runs named urgent, within the default rule."""
    return default_scope(request, queryset).filter(title="urgent")


def nothing(request: Any, queryset: Any) -> Any:
    return queryset.none()


def forbidden(request: Any, queryset: Any) -> Any:
    raise PermissionDenied


ONLY_URGENT = f"{__name__}.only_urgent"


@pytest.mark.parametrize(
    ("permissions", "fields", "may_read", "may_cancel"),
    [
        ([], {}, False, False),
        ([], {"is_staff": True}, False, False),
        (["view"], {}, True, False),
        (["force_cancel_run"], {}, False, False),
        (["cancel_run"], {}, True, True),
        (["view", "cancel_run"], {}, True, True),
        ([], {"is_superuser": True}, True, True),
    ],
)
def test_user__permissions(
    permissions: list[str], fields: Any, may_read: bool, may_cancel: bool
) -> None:
    run = make_run(tenant="acme")
    client = logged_in(make_user(*permissions, **fields))
    for path in READS:
        response = client.get(path.format(run_id=run.run_id))
        assert_sound(response, 200 if may_read else 403)
    for path in (f"/v1/runs/{run.run_id}/cancel", BULK):
        answer = assert_sound(
            client.send(path, {"run_ids": [run.run_id]}), 200 if may_cancel else 403
        )
        assert may_cancel or answer == {"detail": "You may not do this"}
    assert statuses(run) == ["cancelled" if may_cancel else "queued"]


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        (["cancel_run"], False),
        (["force_cancel_run"], False),
        (["cancel_run", "force_cancel_run"], True),
    ],
)
def test_user__force(permissions: list[str], allowed: bool) -> None:
    client = logged_in(make_user(*permissions))
    for path in ("/v1/runs/{run_id}/cancel", BULK):
        run = make_run("running")
        sent = {"run_ids": [run.run_id], "force": True}
        answer = client.send(path.format(run_id=run.run_id), sent)
        body = assert_sound(answer, 200 if allowed else 403)
        assert allowed or body == {"detail": "You may not do this"}
        assert statuses(run) == ["cancelled" if allowed else "running"]


def test_user__permission_on_another_model() -> None:
    """Only the permission of the run model in use counts."""
    user = make_user()
    others = Permission.objects.exclude(codename__in=["cancel_run", "view_run", "view_job"])
    user.user_permissions.set(others)
    assert_sound(logged_in(user).get("/v1/runs"), 403)


def test_key__read_only() -> None:
    run = make_run()
    client = key_client(read_only=True)
    for path in READS:
        assert_sound(client.get(path.format(run_id=run.run_id)), 200)
    for path in (f"/v1/runs/{run.run_id}/cancel", BULK):
        answer = assert_sound(client.send(path, {"run_ids": [run.run_id]}), 403)
        assert answer == {"detail": "You may not do this"}
    assert statuses(run) == ["queued"]
    assert not Cancellation.objects.exists()


def test_scope__of_keys_and_users(settings: Any) -> None:
    settings.RUN_CANCEL_SCOPE = ONLY_URGENT
    urgent, other, foreign = (
        make_run(tenant="acme", title="urgent"),
        make_run(tenant="acme"),
        make_run(tenant="rival", title="urgent"),
    )
    child = urgent.create_child()
    asked = ids([urgent, other, foreign])
    key = key_client("acme")
    assert [run["run_id"] for run in key.get("/v1/runs").json()["results"]] == [urgent.run_id]
    assert_sound(key.get(f"/v1/runs/{other.run_id}"), 404)
    assert_sound(key.send(f"/v1/runs/{other.run_id}/cancel", b""), 404)
    answer = assert_sound(key.cancel(asked), 200)
    assert answer == {"cancelled": asked[:1], "failed": asked[1:]}
    assert statuses(urgent, child, other, foreign) == ["cancelled", "cancelled", "queued", "queued"]

    user = logged_in(make_user("cancel_run"))
    assert assert_sound(user.cancel(asked), 200) == {
        "cancelled": [urgent.run_id, foreign.run_id],
        "failed": [other.run_id],
    }


def test_scope__nothing(settings: Any) -> None:
    settings.RUN_CANCEL_SCOPE = f"{__name__}.nothing"
    runs = make_runs(2)
    client = key_client()
    assert client.get("/v1/runs").json()["results"] == []
    assert assert_sound(client.cancel(ids(runs)), 200) == {"cancelled": [], "failed": ids(runs)}


def test_scope__refuses(settings: Any) -> None:
    settings.RUN_CANCEL_SCOPE = f"{__name__}.forbidden"
    client = key_client()
    for response in (client.get("/v1/runs"), client.cancel(["tsk_1"])):
        assert assert_sound(response, 403) == {"detail": "Forbidden"}


def test_scope__cancellations_are_each_ones_own(settings: Any) -> None:
    """Another's request could name runs that the scope hides."""
    settings.RUN_CANCEL_SCOPE = ONLY_URGENT
    clients = [
        key_client("acme", name="one"),
        key_client("acme", name="two"),
        logged_in(make_user("cancel_run", name="ann")),
        logged_in(make_user("cancel_run", name="bob")),
    ]
    records = [client.cancel([f"tsk_{n}"])["Cancellation-Id"] for n, client in enumerate(clients)]
    for client, own in zip(clients, records, strict=True):
        listed = client.get("/v1/cancellations").json()["results"]
        assert [record["cancellation_id"] for record in listed] == [own]
        for record in records:
            for suffix in ("", "/items"):
                response = client.get(f"/v1/cancellations/{record}{suffix}")
                assert_sound(response, 200 if record == own else 404)


def test_default__users_see_every_cancellation() -> None:
    key_client("acme").cancel(["tsk_1"])
    logged_in(make_user("cancel_run")).cancel(["tsk_2"])
    viewer = logged_in(make_user("view", name="bob"))
    assert len(viewer.get("/v1/cancellations").json()["results"]) == 2

"""Bulk cancellations: who may start them, and how many may be in progress."""

from __future__ import annotations

from typing import Any

import pytest

from django_run_cancel.models import Cancellation
from tests.api.helpers import (
    CANCELLATIONS,
    QUEUED,
    assert_sound,
    finish_bulk,
    key_client,
    logged_in,
    make_user,
    read_cancellation,
    start_bulk,
)
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


class TestPermissions:
    @pytest.mark.parametrize("more", [{}, {"dry_run": True}])
    def test_may_not_cancel(self, more: Any) -> None:
        run = make_run()
        clients = [
            key_client(read_only=True),
            logged_in(make_user("view")),
            logged_in(make_user(name="bob")),
        ]
        for client in clients:
            assert_sound(client.send(CANCELLATIONS, {**QUEUED, **more}), 403)
        assert statuses(run) == ["queued"]
        assert not Cancellation.objects.exists()

    def test_force(self) -> None:
        make_run()
        plain = logged_in(make_user("cancel_run"))
        permitted = logged_in(make_user("cancel_run", "force_cancel_run", name="bob"))
        for more in ({}, {"dry_run": True}):
            body = {**QUEUED, "force": True, **more}
            answer = assert_sound(plain.send(CANCELLATIONS, body), 403)
            assert answer == {"detail": "You may not do this"}
            assert_sound(permitted.send(CANCELLATIONS, body), 200 if more else 202)
            assert_sound(key_client().send(CANCELLATIONS, body), 200 if more else 202)
        assert set(Cancellation.objects.values_list("force", flat=True)) == {True}

    def test_tenants(self) -> None:
        """A key reaches the runs of its tenant, and only keys of the tenant see its record."""
        own, foreign = make_run(tenant="acme"), make_run(tenant="rival")
        acme, rival = key_client("acme"), key_client("rival")
        records = [
            start_bulk(acme, QUEUED),
            start_bulk(acme, {"run_ids": [foreign.run_id]}),
            start_bulk(acme, {"filter": {"ancestor": foreign.run_id}}),
        ]
        assert [record["total_count"] for record in records] == [1, 1, 0]
        finish_bulk()
        assert statuses(own, foreign) == ["cancelled", "queued"]
        assert set(Cancellation.objects.values_list("tenant", flat=True)) == {"acme"}
        path = f"{CANCELLATIONS}/{records[0]['cancellation_id']}"
        for suffix in ("", "/items"):
            assert_sound(rival.get(path + suffix), 404)
        for suffix in ("/abort", "/retry"):
            assert_sound(rival.send(path + suffix, ""), 404)

    def test_filter_of_the_tenant(self, settings: Any) -> None:
        """It narrows what the caller reaches; of a key without a scope there is one tenant."""
        make_run(tenant="acme")
        make_run(tenant="rival")
        body = {"filter": {"tenant": "rival"}, "dry_run": True}
        user, key = logged_in(make_user("cancel_run")), key_client("acme")
        assert assert_sound(user.send(CANCELLATIONS, body), 200)["count"] == 1
        (entry,) = assert_sound(key.send(CANCELLATIONS, body), 422)["detail"]
        assert entry == {
            "type": "extra_forbidden",
            "loc": ["body", "filter", "tenant"],
            "msg": "A key reaches the runs of its own tenant only",
            "input": "rival",
        }
        settings.RUN_CANCEL_SCOPE = "django_run_cancel.api.permissions.default_scope"
        assert assert_sound(key.send(CANCELLATIONS, body), 200)["count"] == 0

    def test_scope(self, settings: Any) -> None:
        settings.RUN_CANCEL_SCOPE = "tests.api.test_permissions.only_urgent"
        urgent, other = make_run(title="urgent"), make_run()
        client = logged_in(make_user("cancel_run"))
        start_bulk(client, QUEUED)
        record = start_bulk(client, {"run_ids": ids([urgent, other])})
        finish_bulk()
        assert statuses(urgent, other) == ["cancelled", "queued"]
        assert read_cancellation(client, record)["failed_count"] == 1

    def test_record_of_a_user(self) -> None:
        client = logged_in(make_user("cancel_run"))
        record = start_bulk(client, QUEUED)
        assert (record["requested_by"], record["ip_address"]) == ("ann", "127.0.0.1")
        assert Cancellation.objects.get().tenant is None


class TestLimits:
    def test_in_progress(self, settings: Any) -> None:
        settings.RUN_CANCEL_MAX_BULK = 2
        runs = make_runs(2, tenant="acme")
        make_run(tenant="rival")
        acme, rival = key_client("acme"), key_client("rival")
        first = start_bulk(acme, {"run_ids": [runs[0].run_id]}, idempotency_key="one")
        start_bulk(acme, QUEUED)
        for headers in ({}, {"idempotency_key": "two"}):
            response = acme.send(CANCELLATIONS, QUEUED, **headers)
            assert assert_sound(response, 429) == {
                "detail": "2 bulk cancellations are in progress, which is the limit. "
                "Wait for one to end, or abort one"
            }
            assert response["Retry-After"] == "10"
        # A repeated request starts nothing, nor does a preview.
        again = start_bulk(acme, {"run_ids": [runs[0].run_id]}, idempotency_key="one")
        assert again == first
        assert_sound(acme.send(CANCELLATIONS, {**QUEUED, "dry_run": True}), 200)
        assert_sound(acme.cancel(["x"]), 200)
        start_bulk(rival, QUEUED)
        assert_sound(acme.send(f"{CANCELLATIONS}/{first['cancellation_id']}/abort", ""), 200)
        start_bulk(acme, QUEUED)

    def test_that_was_lowered(self, settings: Any) -> None:
        make_run()
        client = key_client()
        for _ in range(2):
            start_bulk(client, QUEUED)
        settings.RUN_CANCEL_MAX_BULK = 1
        assert_sound(client.send(CANCELLATIONS, QUEUED), 429)

    def test_of_users(self, settings: Any) -> None:
        settings.RUN_CANCEL_MAX_BULK = 1
        make_run()
        client = logged_in(make_user("cancel_run"))
        start_bulk(client, QUEUED, idempotency_key="one")
        assert_sound(client.send(CANCELLATIONS, QUEUED), 429)
        start_bulk(client, QUEUED, idempotency_key="one")
        finish_bulk()
        make_run()
        start_bulk(client, QUEUED)

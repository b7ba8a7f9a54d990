"""The record of a cancellation: who asked, why, and for what."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from django_run_cancel.cancellation.arguments import label_of_user
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import RunStatus
from tests.cancellation.helpers import cancel
from tests.helpers import ids, make_run

pytestmark = pytest.mark.django_db


class TestRecord:
    def test_who_and_why_and_what(self) -> None:
        user = get_user_model().objects.create_user("ada")
        runs = [make_run(RunStatus.RUNNING, tenant="a"), make_run(RunStatus.FAILED, tenant="a")]
        before = timezone.now()
        record = cancel(
            *ids(runs), "nope", requested_by=user, source="admin", reason="Disk full", force=True
        ).cancellation
        assert record is not None
        record.refresh_from_db()
        assert (record.requested_by, record.user_id, record.source) == (
            "ada",
            str(user.pk),
            "admin",
        )
        assert (record.reason, record.force, record.tenant) == ("Disk full", True, "a")
        assert before <= record.requested_at <= timezone.now()
        assert (record.total_count, record.cancelled_count, record.failed_count) == (3, 1, 2)
        rows = record.items.order_by("pk").values_list("run_id", "outcome", "previous_status")
        assert list(rows) == [
            (runs[0].run_id, "cancelled", "running"),
            (runs[1].run_id, "already_finished", "failed"),
            ("nope", "not_found", ""),
        ]

    def test_outlives_the_user_and_the_run(self) -> None:
        user = get_user_model().objects.create_user("ada")
        run = make_run()
        record = cancel(run.run_id, requested_by=user).cancellation
        assert record is not None
        get_run_model()._default_manager.all().delete()
        key = str(user.pk)
        user.delete()
        record.refresh_from_db()
        assert (record.requested_by, record.user_id) == ("ada", key)
        assert record.items.get().run_id == run.run_id

    def test_tenant_of_the_requester(self) -> None:
        record = cancel("nope", requested_by="CI", tenant="a").cancellation
        assert record is not None
        assert (record.requested_by, record.tenant) == ("CI", "a")

    def test_tenant_is_that_of_the_runs_when_there_is_one(self) -> None:
        first, second = make_run(tenant="a"), make_run(tenant="b")
        assert cancel(first.run_id, "nope").cancellation.tenant == "a"  # type: ignore[union-attr]
        for asked in (ids([first, second]), ["nope"]):
            record = cancel(*asked).cancellation
            assert record is not None
            record.refresh_from_db()
            assert record.tenant is None

    def test_outbox(self) -> None:
        told = make_run(backend="celery", external_id="job-1")
        unsent = make_run(backend="celery", external_id="")
        ours = make_run(backend="", external_id="")
        done = make_run(RunStatus.FAILED, backend="celery", external_id="job-2")
        cancel(*ids([told, unsent, ours, done]))
        item = CancellationItem.objects.get(delivery="pending")
        assert (item.run_id, item.backend, item.external_id) == (told.run_id, "celery", "job-1")
        assert item.attempts == 0
        assert item.next_attempt_at is not None
        assert item.next_attempt_at <= timezone.now()
        assert CancellationItem.objects.filter(delivery="not_needed").count() == 3


class Nameless:
    """A user of a host where people sign in by phone."""

    pk = 7

    def __init__(self, name: str | None) -> None:
        self.name = name

    def get_username(self) -> str | None:
        return self.name


@pytest.mark.parametrize(
    ("name", "label"), [(None, "user 7"), ("", "user 7"), (" ", "user 7"), ("a" * 300, "a" * 255)]
)
def test_label_of_user(name: str | None, label: str) -> None:
    assert label_of_user(Nameless(name)) == label  # type: ignore[arg-type]

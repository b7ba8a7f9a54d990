from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, OperationalError, connection, transaction
from django.utils import timezone

from django_run_cancel.cancellation import CancelResult, cancel_runs
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS, label_of_user
from django_run_cancel.db import locks, statements, trees, writes
from django_run_cancel.db.retry import MAX_TRIES
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.signals import run_cancelled, runs_cancelled
from django_run_cancel.states import ACTIVE, TERMINAL, Outcome, RunStatus
from tests.helpers import IS_POSTGRESQL, ids, make_run, make_runs, statuses

# PostgreSQL does both in one statement.
WRITES = ["write_and_read_children"] if IS_POSTGRESQL else ["write_cancelled", "insert_rows"]

pytestmark = pytest.mark.django_db


def cancel(*run_ids: str, **kwargs: Any) -> CancelResult:
    return cancel_runs(run_ids, **{"requested_by": "operator", **kwargs})


def outcomes(result: CancelResult) -> dict[str, str]:
    return {item.run_id: item.outcome for item in result.items}


class TestTruth:
    @pytest.mark.parametrize("status", sorted(ACTIVE))
    def test_active_run(self, status: str) -> None:
        run = make_run(status)
        result = cancel(run.run_id)
        assert (result.cancelled, result.failed) == ([run.run_id], [])
        run.refresh_from_db()
        assert run.status == RunStatus.CANCELLED
        assert run.cancellation == result.cancellation
        assert timezone.now() >= run.finished_at >= run.created_at

    @pytest.mark.parametrize("status", sorted(TERMINAL - {RunStatus.CANCELLED}))
    def test_finished_run_is_failed_and_untouched(self, status: str) -> None:
        run = make_run(status)
        before = get_run_model()._default_manager.filter(pk=run.pk).values().get()
        result = cancel(run.run_id)
        assert (result.cancelled, result.failed) == ([], [run.run_id])
        assert get_run_model()._default_manager.filter(pk=run.pk).values().get() == before
        assert outcomes(result) == {run.run_id: Outcome.ALREADY_FINISHED}

    def test_each_id_once_in_the_order_asked(self) -> None:
        good, done, gone = make_run(), make_run(RunStatus.FAILED), make_run(RunStatus.CANCELLED)
        asked = ["zzz", gone.run_id, done.run_id, good.run_id, "aaa", good.run_id, "zzz"]
        result = cancel(*asked)
        assert result.cancelled == [gone.run_id, good.run_id]
        assert result.failed == ["zzz", done.run_id, "aaa"]
        assert [item.run_id for item in result.items] == list(dict.fromkeys(asked))

    @pytest.mark.parametrize(
        "impossible",
        ["", "a\0b", "\ud800", "x" * 65, "x" * 100_000, "tsk_1 ", "TSK_1", "tsk_\u00b9"],
    )
    def test_id_that_cannot_be_meant(self, impossible: str) -> None:
        run = make_run(run_id="tsk_1")
        result = cancel(impossible)
        assert result.failed == [impossible]
        assert statuses(run) == [RunStatus.QUEUED]
        recorded = CancellationItem.objects.get()
        assert recorded.outcome == Outcome.NOT_FOUND
        assert len(recorded.run_id) <= 64

    def test_longest_id(self) -> None:
        run = make_run(run_id="x" * 64)
        assert cancel(run.run_id).cancelled == [run.run_id]
        assert statuses(run) == [RunStatus.CANCELLED]
        assert CancellationItem.objects.get().run_id == run.run_id

    def test_similar_ids_are_told_apart(self) -> None:
        lower, upper = make_run(run_id="tsk_1"), make_run(run_id="TSK_1")
        assert cancel("TSK_1").cancelled == ["TSK_1"]
        assert statuses(lower, upper) == [RunStatus.QUEUED, RunStatus.CANCELLED]

    def test_out_of_scope_looks_like_unknown(self) -> None:
        mine, other = make_run(tenant="a"), make_run(tenant="b")
        scope = get_run_model()._default_manager.filter(tenant="a")
        result = cancel(mine.run_id, other.run_id, "nope", runs=scope)
        assert result.failed == [other.run_id, "nope"]
        unknown = [item[1:] for item in result.items[1:]]
        assert unknown[0] == unknown[1]
        assert statuses(mine, other) == [RunStatus.CANCELLED, RunStatus.QUEUED]

    def test_empty_scope(self) -> None:
        run = make_run()
        assert cancel(run.run_id, runs=get_run_model()._default_manager.none()).failed == ids([run])

    def test_ordered_and_joined_scope(self) -> None:
        parent = make_run(tenant="a")
        child = parent.create_child()
        scope = get_run_model()._default_manager.filter(parent__tenant="a").order_by("-title")
        assert cancel(parent.run_id, child.run_id, runs=scope).cancelled == [child.run_id]

    def test_nothing_asked(self, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(0):
            assert cancel() == CancelResult(None, [], [], [])


class TestEvidence:
    @pytest.mark.parametrize("status", ["created", "queued"])
    def test_waiting_run_never_started(self, status: str) -> None:
        run = make_run(status)
        cancel(run.run_id)
        run.refresh_from_db()
        assert run.stop_state == "never_started"
        assert run.stopped_at == run.finished_at

    @pytest.mark.parametrize("status", ["running", "paused"])
    def test_started_run_is_stopping(self, status: str) -> None:
        run = make_run(status)
        cancel(run.run_id)
        run.refresh_from_db()
        assert run.stop_state == "stopping"
        assert run.stopped_at is None


class TestCascade:
    def test_any_depth_and_across_finished_nodes(self) -> None:
        top = make_run(RunStatus.RUNNING, tenant="a")
        level = [top]
        for depth in range(6):
            level.append(level[-1].create_child(status=RunStatus.RUNNING))
            if depth == 2:
                level[-2].mark_completed()
        beside = make_run()
        result = cancel(top.run_id)
        assert result.cancelled == [top.run_id]
        cancelled = [run for run in level if run != level[2]]
        assert statuses(*cancelled) == [RunStatus.CANCELLED] * 6
        assert statuses(level[2], beside) == [RunStatus.COMPLETED, RunStatus.QUEUED]
        cascade = [item for item in result.items if item.via == "cascade"]
        assert {item.run_id for item in cascade} == set(ids(cancelled[1:]))
        assert result.cancellation is not None
        assert result.cancellation.cascaded_count == 5

    def test_finished_run_cascades_to_nothing(self) -> None:
        top = make_run(RunStatus.RUNNING)
        child = top.create_child()
        top.mark_completed()
        assert cancel(top.run_id).failed == [top.run_id]
        assert statuses(child) == [RunStatus.CREATED]

    def test_finished_run_between_two_that_are_asked_for(self) -> None:
        top = make_run(RunStatus.RUNNING)
        middle = top.create_child(status=RunStatus.RUNNING)
        bottom = middle.create_child()
        middle.mark_completed()
        result = cancel(middle.run_id, top.run_id)
        assert (result.cancelled, result.failed) == ([top.run_id], [middle.run_id])
        assert statuses(bottom) == [RunStatus.CANCELLED]

    def test_child_asked_for_too_is_answered_once(self) -> None:
        top = make_run()
        child = top.create_child()
        result = cancel(child.run_id, top.run_id)
        assert [(item.run_id, item.via) for item in result.items] == [
            (child.run_id, "requested"),
            (top.run_id, "requested"),
        ]

    def test_child_out_of_scope_goes_along_but_is_not_answered(self) -> None:
        top = make_run(title="mine")
        child = top.create_child(title="other")
        scope = get_run_model()._default_manager.filter(title="mine")
        result = cancel(top.run_id, child.run_id, runs=scope)
        assert (result.cancelled, result.failed) == ([top.run_id], [child.run_id])
        assert statuses(child) == [RunStatus.CANCELLED]
        assert [(item.outcome, item.via) for item in result.items[1:]] == [
            ("not_found", "requested"),
            ("cancelled", "cascade"),
        ]

    def test_asking_again_sweeps_up_what_was_created_behind_our_back(self) -> None:
        top = make_run()
        cancel(top.run_id)
        stray = make_run(parent=top)
        assert cancel(top.run_id).cancelled == [top.run_id]
        assert statuses(stray) == [RunStatus.CANCELLED]

    def test_cycle(self) -> None:
        first = make_run()
        second = make_run(parent=first)
        get_run_model()._default_manager.filter(pk=first.pk).update(parent=second)
        assert cancel(second.run_id).cancelled == [second.run_id]
        assert statuses(first, second) == [RunStatus.CANCELLED] * 2

    def test_children_that_came_in_before_the_lock(self, stale_closure: list[int]) -> None:
        top = make_run()
        child = top.create_child()
        grandchild = child.create_child()
        assert cancel(top.run_id).cancelled == [top.run_id]
        assert statuses(child, grandchild) == [RunStatus.CANCELLED] * 2
        assert len(stale_closure) == 1, "in a transaction of the caller's they are locked late"

    def test_more_rows_than_a_statement_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statements, "MAX_PARAMETERS", 125)
        top = make_run()
        children = make_runs(60, parent=top)
        assert cancel(top.run_id).cancelled == [top.run_id]
        assert statuses(*children) == [RunStatus.CANCELLED] * 60
        assert CancellationItem.objects.count() == 61

    def test_thousands_of_children(self) -> None:
        top = make_run()
        make_runs(5_000, parent=top)
        cancel(top.run_id)
        assert not get_run_model()._default_manager.active().exists()

    def test_deeper_than_mariadb_recurses(self) -> None:
        model = get_run_model()
        chain = make_runs(1_100)
        for above, below in pairwise(chain):
            below.parent = above
        model._default_manager.bulk_update(chain, ["parent"], batch_size=200)
        cancel(chain[0].run_id)
        assert not model._default_manager.active().exists()


class TestIdempotence:
    def test_asking_again_repeats_nothing(
        self, received: list[Any], django_capture_on_commit_callbacks: Any
    ) -> None:
        run = make_run(RunStatus.RUNNING)
        child = run.create_child()
        with django_capture_on_commit_callbacks(execute=True):
            first = cancel(run.run_id)
            before = list(get_run_model()._default_manager.values())
            second = cancel(run.run_id)
        assert second.cancelled == first.cancelled
        assert list(get_run_model()._default_manager.values()) == before
        assert outcomes(second) == {run.run_id: Outcome.ALREADY_CANCELLED}
        assert {entry["run_id"] for entry in received if "run_id" in entry} == {
            run.run_id,
            child.run_id,
        }
        assert len(received) == 3
        delivery = second.cancellation.items.get()  # type: ignore[union-attr]
        assert (delivery.delivery, delivery.backend) == ("not_needed", "")

    def test_key_gives_the_first_answer(self) -> None:
        good, done = make_run(), make_run(RunStatus.FAILED)
        child = good.create_child()
        asked = ["a\0b", good.run_id, done.run_id, "x" * 70]
        first = cancel(*asked, idempotency_key="k1", reason="because")
        again = cancel(*asked, idempotency_key="k1", reason="because")
        assert again == first
        assert (again.cancelled, again.failed) == ([good.run_id], ["a\0b", done.run_id, "x" * 70])
        assert again.items[-1].run_id == child.run_id
        assert Cancellation.objects.count() == 1

    @pytest.mark.parametrize(
        "other", [{"reason": "other"}, {"force": True}, {"run_ids": ["another"]}]
    )
    def test_key_for_another_request(self, other: dict[str, Any]) -> None:
        run = make_run()
        cancel("nope", idempotency_key="k1")
        request = {"run_ids": ["nope"], "requested_by": "operator", **other}
        with pytest.raises(IdempotencyKeyReused, match="'k1'") as caught:
            cancel_runs(**request, idempotency_key="k1")
        assert caught.value.idempotency_key == "k1"
        # The caller's transaction is still usable.
        assert statuses(run) == [RunStatus.QUEUED]

    def test_key_belongs_to_its_requester(self) -> None:
        first = cancel("nope", idempotency_key="k1")
        second = cancel("nope", idempotency_key="k1", requested_by="somebody else")
        assert first.cancellation != second.cancellation

    def test_without_a_key_each_call_is_recorded(self) -> None:
        cancel("nope")
        cancel("nope")
        assert Cancellation.objects.count() == 2


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


class TestDryRun:
    def test_same_answer_nothing_written(self, received: list[Any]) -> None:
        top = make_run(RunStatus.RUNNING)
        child = top.create_child()
        done = make_run(RunStatus.FAILED)
        asked = [done.run_id, top.run_id, "nope"]
        dry = cancel(*asked, dry_run=True)
        assert statuses(top, child, done) == ["running", "created", "failed"]
        assert not Cancellation.objects.exists()
        assert dry.cancellation is None
        real = cancel(*asked)
        assert (dry.cancelled, dry.failed, dry.items) == (real.cancelled, real.failed, real.items)
        assert received == []

    def test_deep_tree(self) -> None:
        """PostgreSQL reads its levels in more than one statement."""
        top = above = make_run(RunStatus.RUNNING)
        below = []
        for _ in range(5):
            above = above.create_child(status=RunStatus.QUEUED)
            below.append(above.run_id)
        dry = cancel(top.run_id, dry_run=True)
        assert {item.run_id for item in dry.items} == {top.run_id, *below}
        assert not Cancellation.objects.exists()
        assert cancel(top.run_id).items == dry.items


class TestArguments:
    @pytest.mark.parametrize("wrong", ["tsk_1", [1], [None], ["a", b"b"], [["a"]], 5])
    def test_ids(self, wrong: Any) -> None:
        with pytest.raises(TypeError):
            cancel_runs(wrong, requested_by="operator")
        assert not Cancellation.objects.exists()

    def test_too_many_ids(self) -> None:
        with pytest.raises(ValueError, match=f"at most {MAX_RUN_IDS} ids, not {MAX_RUN_IDS + 1}"):
            cancel_runs(map(str, range(MAX_RUN_IDS + 1)), requested_by="operator")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"requested_by": ""},
            {"requested_by": " "},
            {"requested_by": "x" * 256},
            {"requested_by": AnonymousUser()},
            {"reason": "x" * 2_001},
            {"reason": "a\0b"},
            {"source": "elsewhere"},
            {"idempotency_key": ""},
            {"idempotency_key": "x" * 256},
        ],
    )
    def test_others(self, wrong: dict[str, Any]) -> None:
        run = make_run()
        with pytest.raises(ValueError, match=r"must|valid"):
            cancel(run.run_id, **wrong)
        assert statuses(run) == [RunStatus.QUEUED]

    def test_generator(self) -> None:
        run = make_run()
        assert cancel_runs((i for i in [run.run_id]), requested_by="x").cancelled == [run.run_id]


@pytest.fixture
def received() -> Iterator[list[Any]]:
    """Collect what both signals send."""
    entries: list[Any] = []

    def receive(signal: Any, sender: Any, **kwargs: Any) -> None:
        assert sender is get_run_model()
        entries.append(kwargs)

    run_cancelled.connect(receive)
    runs_cancelled.connect(receive)
    yield entries
    run_cancelled.disconnect(receive)
    runs_cancelled.disconnect(receive)


class TestSignals:
    def test_once_per_changed_run_and_once_per_request(
        self, received: list[Any], django_capture_on_commit_callbacks: Any
    ) -> None:
        runs = [make_run(), make_run(RunStatus.FAILED), make_run(RunStatus.CANCELLED)]
        child = runs[0].create_child()
        with django_capture_on_commit_callbacks(execute=True):
            record = cancel(*ids(runs)).cancellation
            assert received == [], "nothing before the commit"
        about = {"cancellation_id": record.cancellation_id}  # type: ignore[union-attr]
        assert received == [
            {"run_id": runs[0].run_id, **about},
            {"run_id": child.run_id, **about},
            {"run_ids": [runs[0].run_id, child.run_id], **about},
        ]

    def test_none_when_nothing_changed(self, django_capture_on_commit_callbacks: Any) -> None:
        with django_capture_on_commit_callbacks() as callbacks:
            cancel("nope", make_run(RunStatus.FAILED).run_id)
        assert callbacks == []

    def test_receiver_that_raises(
        self,
        received: list[Any],
        django_capture_on_commit_callbacks: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def broken(**kwargs: Any) -> None:
            raise RuntimeError("receiver is broken")

        run_cancelled.connect(broken)
        try:
            with django_capture_on_commit_callbacks(execute=True):
                result = cancel(make_run().run_id)
        finally:
            run_cancelled.disconnect(broken)
        assert result.cancelled
        assert len(received) == 2
        assert "receiver is broken" in caplog.text


@pytest.fixture
def stale_closure(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the first reading of a tree, without locks, miss all that is below its top."""
    readings: list[int] = []
    real = trees.read_closure

    def read_closure(*args: Any) -> tuple[set[Any], set[Any]]:
        reached, closure = real(*args)
        readings.append(len(closure))
        return reached, set(reached) if len(readings) == 1 else closure

    monkeypatch.setattr(trees, "read_closure", read_closure)
    return readings


@pytest.mark.django_db(transaction=True)
class TestTransaction:
    def test_starts_over_for_children_that_came_in(self, stale_closure: list[int]) -> None:
        top = make_run()
        child = top.create_child()
        assert cancel(top.run_id).cancelled == [top.run_id]
        assert statuses(child) == [RunStatus.CANCELLED]
        assert stale_closure == [2, 2]
        assert Cancellation.objects.count() == 1

    @pytest.mark.parametrize("step", ["insert", *WRITES])
    def test_all_or_nothing(
        self, step: str, monkeypatch: pytest.MonkeyPatch, received: list[Any]
    ) -> None:
        real = getattr(writes, step)

        def write_then_fail(*args: Any) -> None:
            real(*args)
            raise RuntimeError(step)

        monkeypatch.setattr(writes, step, write_then_fail)
        run = make_run()
        with pytest.raises(RuntimeError, match=step):
            cancel(run.run_id)
        assert statuses(run) == [RunStatus.QUEUED]
        assert not Cancellation.objects.exists()
        assert not CancellationItem.objects.exists()
        assert received == []

    def test_joins_the_callers(self, received: list[Any]) -> None:
        run = make_run()
        with transaction.atomic():
            assert cancel(run.run_id).cancelled == [run.run_id]
            transaction.set_rollback(True)
        assert statuses(run) == [RunStatus.QUEUED]
        assert not Cancellation.objects.exists()
        with transaction.atomic():
            cancel(run.run_id)
            assert received == []
        assert statuses(run) == [RunStatus.CANCELLED]
        assert len(received) == 2

    def test_failure_dooms_the_callers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = make_run()

        def fail(*args: Any) -> None:
            raise OperationalError("gone")

        with transaction.atomic():
            run.mark_running()
            with monkeypatch.context() as patch:
                patch.setattr(writes, WRITES[-1], fail)
                with pytest.raises(OperationalError, match="gone"):
                    cancel(run.run_id)
            assert transaction.get_rollback(), "half a cancellation cannot be committed"
        assert statuses(run) == [RunStatus.QUEUED]

    def test_gives_up_after_several_attempts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def deadlock(*args: Any) -> None:
            calls.append(1)
            raise OperationalError(1213, "Deadlock found when trying to get lock")

        monkeypatch.setattr(locks, "lock_runs", deadlock)
        with pytest.raises(OperationalError, match="Deadlock"):
            cancel(make_run().run_id)
        assert len(calls) == MAX_TRIES

    def test_other_failures_are_not_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def fail(*args: Any) -> None:
            calls.append(1)
            raise OperationalError(1205, "Lock wait timeout exceeded")

        monkeypatch.setattr(locks, "lock_runs", fail)
        with pytest.raises(OperationalError, match="timeout"):
            cancel(make_run().run_id)
        assert len(calls) == 1

    def test_broken_record_is_not_taken_for_a_repeated_key(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def insert(*args: Any) -> None:
            raise IntegrityError("another constraint, perhaps of the host's")

        monkeypatch.setattr(writes, "insert", insert)
        run = make_run()
        with pytest.raises(IntegrityError, match="another constraint"):
            cancel(run.run_id, idempotency_key="k")
        assert statuses(run) == [RunStatus.QUEUED]


class TestAutocommit:
    def test_refused_where_nobody_commits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = make_run()
        monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
        with pytest.raises(ImproperlyConfigured, match="AUTOCOMMIT"):
            cancel(run.run_id)
        assert statuses(run) == [RunStatus.QUEUED]


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

"""``cancel_runs``: what it answers, evidence, repeated requests, dry runs and arguments."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.utils import timezone

from django_run_cancel.cancellation import CancelResult, cancel_runs
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import ACTIVE, TERMINAL, Outcome, RunStatus
from tests.cancellation.helpers import cancel, outcomes
from tests.helpers import ids, make_run, statuses

pytestmark = pytest.mark.django_db


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

    @pytest.mark.django_db(transaction=True)
    def test_scope_that_would_lock(self) -> None:
        """Its locks would need a transaction, and have no order."""
        run = make_run()
        scope = get_run_model()._default_manager.select_for_update()
        assert cancel(run.run_id, runs=scope, dry_run=True).cancelled == ids([run])
        assert cancel(run.run_id, runs=scope).cancelled == ids([run])

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

    def test_scope_of_another_model(self) -> None:
        run = make_run()
        with pytest.raises(TypeError, match=r"runs must be a queryset of .*, not of .*Item\."):
            cancel(run.run_id, runs=CancellationItem.objects.all())
        assert statuses(run) == [RunStatus.QUEUED]

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
            {"tenant": "x" * 65},
            {"tenant": "a\0b"},
            {"tenant": "\ud800"},
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

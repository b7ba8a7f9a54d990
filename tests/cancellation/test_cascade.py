"""The cascade of a cancellation to the descendants of runs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from django_run_cancel.db import statements
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import RunStatus
from tests.cancellation.helpers import cancel
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


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

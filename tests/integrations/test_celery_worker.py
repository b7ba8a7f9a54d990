"""Celery tasks of a host as runs, with a real worker over Redis."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import Delivery
from django_run_cancel.testing import wait_until
from tests.backends.helpers import RedisHarness
from tests.helpers import IS_SQLITE, make_run, statuses
from tests.services import require_package

require_package("celery")

import celery
from celery import chain, chord, current_app, group
from celery.exceptions import TaskRevokedError

from tests.integrations import celery_host
from tests.integrations.helpers import cancel, has_status, run_of

CLASS = "django_run_cancel.integrations.celery:CancellableTask"


class HostHarness(RedisHarness):
    backend = "django_run_cancel.backends.celery.CeleryBackend"
    ready = " ready."
    task_cls: str | None = CLASS

    def set_up(self) -> None:
        assert self.broker_url is not None
        self.app = celery_host.make_app(self.name, self.broker_url, self.task_cls)

    def environment(self) -> dict[str, str]:
        assert self.broker_url is not None
        return {
            "CELERY_NAME": self.name,
            "CELERY_URL": self.broker_url,
            "CELERY_CLASS": self.task_cls or "",
        }

    def command(self) -> list[str]:
        app = "tests.integrations.celery_host:app"
        options = ["-c", "2", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
        return ["-m", "celery", "-A", app, "worker", *options]

    def task(self, name: str) -> Any:
        return self.app.tasks[f"host.{name}"]

    def traced(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


class UntrackedHarness(HostHarness):
    task_cls = None


@pytest.fixture
def host(
    request: pytest.FixtureRequest, transactional_db: None, tmp_path: Path
) -> Iterator[HostHarness]:
    harness_class = getattr(request, "param", HostHarness)
    harness = harness_class(tmp_path, HostHarness.broker(), None)
    harness.set_up()
    before = current_app._get_current_object()
    harness.app.set_current()  # other tests have apps with tasks of the same names
    try:
        yield harness
    finally:
        before.set_current()
        harness.kill()
        harness.app.control.purge()
        results = harness.app.backend
        results.result_consumer.stop()
        # A result that is collected later would connect once more.
        results.remove_pending_result = lambda result: result
        results.client.close()
        harness.app.close()


def killed(task_id: str) -> bool:
    CancellationItem.objects.filter(delivery=Delivery.PENDING).update(
        next_attempt_at=timezone.now()
    )
    deliver_due()
    return bool(run_of(task_id).stop_state == "killed")


@pytest.mark.broker
class TestWorker:
    @pytest.mark.parametrize("host", [HostHarness, UntrackedHarness], indirect=True)
    def test_results_are_as_before(self, host: HostHarness) -> None:
        """With the one line and without."""
        host.online()
        added = host.task("add").delay(1, y=4)
        by_name = host.app.send_task("host.add", [5])
        summed = chord([host.task("add").s(n) for n in (1, 2)])(host.task("total").s())
        chained = chain(host.task("add").s(1), host.task("add").s(10)).apply_async()
        retried = host.task("fails_first").delay("retried")
        later = host.task("add").apply_async([2], countdown=0.5, priority=3)
        replaced = host.task("replaces").delay("group")
        failed = host.task("fails").apply_async(
            link_error=host.task("note_error").s(name="errback")
        )
        assert added.get(120) == 5
        assert by_name.get(120) == 7
        assert summed.get(120) == 7
        assert chained.get(120) == 13
        assert retried.get(120) == "second"
        assert later.get(120) == 4
        assert replaced.get(120) == [3, 2]
        with pytest.raises(ValueError, match="wrong"):
            failed.get(120)
        wait_until(lambda: host.traced("errback"), "the errback")
        table = {
            "host.add SUCCESS": 9,
            "host.total SUCCESS": 1,
            "host.fails_first RETRY": 1,
            "host.fails_first SUCCESS": 1,
            "host.replaces IGNORED": 1,
            "celery.accumulate SUCCESS": 1,
            "host.fails FAILURE": 1,
        }
        wait_until(lambda: Counter(host.traced("table")) == table, "the signals")
        if host.task_cls is None:
            assert not get_run_model()._default_manager.exists()
            return
        for result in (added, by_name, summed, chained, chained.parent, retried, later):
            wait_until(lambda result=result: has_status(result.id, "completed"), "its run")  # type: ignore[misc]
        assert host.traced("retried") == ["tried", "tried"]

    def test_cancelled_while_it_waits(self, host: HostHarness) -> None:
        result = host.task("works").delay("waits")
        cancel(result.id)
        host.online()
        with pytest.raises(TaskRevokedError):
            result.get(120)
        assert host.traced("waits") == []
        wait_until(lambda: host.traced("revoked") == [result.id], "the signal")
        assert run_of(result.id).stop_state == "never_started"

    def test_cancelled_deep_in_a_library(self, host: HostHarness) -> None:
        host.online()
        result = host.task("works").delay("works")
        wait_until(lambda: host.traced("works"), "the start")
        cancel(result.id)
        with pytest.raises(TaskRevokedError):
            result.get(120)
        wait_until(lambda: run_of(result.id).stop_state == "acknowledged", "the evidence")
        assert len(host.traced("works")) == 1
        wait_until(lambda: host.traced("revoked") == [result.id], "the signal")
        assert "Traceback" not in host.log.read_text()

    def test_children_go_along(self, host: HostHarness) -> None:
        host.online()
        result = host.task("parent").delay("child")
        child_id = result.get(120)
        wait_until(lambda: host.traced("child"), "the start of the child")
        assert run_of(child_id).parent == run_of(result.id)

    def test_chain__what_has_not_run_does_not_run(self, host: HostHarness) -> None:
        host.online()
        works, add = host.task("works"), host.task("add")
        result = chain(works.s("link"), add.si(1), add.si(2)).apply_async()
        links = [result.parent.parent.id, result.parent.id, result.id]
        wait_until(lambda: host.traced("link"), "the start")
        assert [run_of(link).parent_id for link in links[1:]] == [
            run_of(link).pk for link in links[:2]
        ]
        cancel(links[0])
        wait_until(lambda: run_of(links[0]).stop_state == "acknowledged", "the evidence")
        assert [run_of(link).status for link in links] == ["cancelled"] * 3

    def test_chord__errback_instead_of_the_body(self, host: HostHarness) -> None:
        host.online()
        body = host.task("total").s().on_error(host.task("note_error").s(name="chord"))
        header = [host.task("add").s(1), host.task("works").s("member")]
        result = chord(header)(body)
        wait_until(lambda: host.traced("member"), "the start")
        (line,) = host.traced("member")
        cancel(line.split()[1])
        with pytest.raises(Exception, match="cancelled"):
            result.get(120)
        wait_until(lambda: host.traced("chord"), "the errback")

    def test_redelivered_because_its_worker_was_killed(self, host: HostHarness) -> None:
        """It runs again once the heartbeat of the dead execution is old enough."""
        host.online()
        result = host.task("works").apply_async(["killed"])
        wait_until(lambda: host.traced("killed"), "the start")
        os.kill(int(host.traced("killed")[0].split()[2]), signal.SIGKILL)
        wait_until(lambda: len(host.traced("killed")) == 2, "the second start")
        assert run_of(result.id).status == "running"
        cancel(result.id)
        with pytest.raises(TaskRevokedError):
            result.get(120)
        assert len(host.traced("killed")) == 2

    def test_chord__one_run_for_all(self, host: HostHarness) -> None:
        """Its id is that of the result that the caller has: the body's."""
        works, add, total = (host.task(name) for name in ("works", "add", "total"))
        result = chord([works.s("one"), chain(works.s("two"), add.si(1))])(total.s())
        one, last = result.parent.results
        members = [one.id, last.parent.id]
        assert {run_of(member).parent for member in members} == {run_of(result.id)}
        assert run_of(last.id).parent == run_of(last.parent.id)
        cancel(result.id)
        assert [run_of(each).status for each in (*members, last.id)] == ["cancelled"] * 3
        host.online()
        with pytest.raises(Exception, match="cancelled"):
            result.get(120)
        assert host.traced("one") == host.traced("two") == []

    @pytest.mark.skipif(
        celery.VERSION < (5, 4), reason="Celery 5.3 gives no id to what follows a group in a chain."
    )
    def test_parents_stay_as_they_were_published(self, host: HostHarness) -> None:
        """The last member of a chord publishes the body, which is above it all the same."""
        host.online()
        add, total, replaces = (host.task(name) for name in ("add", "total", "replaces"))
        members = [add.si(1), add.si(2)]
        chord_and_link = chain(chord(members, total.s()), add.s()).apply_async()
        group_in_chain = chain(add.si(1), group(members), total.s(), add.s()).apply_async()
        replaced = chain(replaces.si("chain"), add.s()).apply_async()
        line = [replaced.parent, replaced]
        for link in (chord_and_link, group_in_chain):
            body = link.parent
            line += [body, link]
            assert link.get(120) == 9
            for member in body.parent.results:
                assert run_of(member.id).parent == run_of(body.id)
        assert replaced.get(120) == 5
        for above, below in zip(line[::2], line[1::2], strict=True):
            assert run_of(below.id).parent == run_of(above.id)
        assert run_of(group_in_chain.parent.id).parent.title == "host.add"
        assert run_of(chord_and_link.parent.id).parent is None
        assert run_of(replaced.parent.id).parent is None
        assert get_run_model()._default_manager.count() == 12

    def test_what_cannot_run_any_more_has_failed(self, host: HostHarness) -> None:
        host.online()
        fails, add, total = (host.task(name) for name in ("fails", "add", "total"))
        chained = chain(fails.s(), add.s(1), add.s(2)).apply_async()
        summed = chord([add.s(1), fails.s()])(total.s())
        lost = host.task("exits").delay()
        for result in (chained.parent.parent, chained.parent, chained, summed, lost):
            wait_until(lambda result=result: has_status(result.id, "failed"), "its run")  # type: ignore[misc]
        assert run_of(chained.id).failure_reason == "ValueError: wrong"
        assert "WorkerLostError" in run_of(lost.id).failure_reason

    def test_revoked_or_expired(self, host: HostHarness) -> None:
        """By Celery's own means, the rest of the chain too."""
        expired = host.task("works").apply_async(["expired"], expires=0.001)
        host.online()
        following = chain(host.task("works").s("revoked"), host.task("add").si(1)).apply_async()
        revoked = following.parent
        wait_until(lambda: host.traced("revoked"), "the start")
        revoked.revoke(terminate=True)
        for result in (expired, revoked, following):
            wait_until(lambda result=result: has_status(result.id, "cancelled"), "its run")  # type: ignore[misc]
            assert run_of(result.id).cancellation.requested_by == "celery"
        assert host.traced("expired") == []

    @pytest.mark.parametrize(
        ("kind", "value"), [("task", 3), ("chain", 3), ("group", [3, 2]), ("untracked", [3])]
    )
    def test_replaced(self, host: HostHarness, kind: str, value: Any) -> None:
        host.online()
        result = chain(host.task("replaces").s(kind), host.task("listed").s()).apply_async()
        assert result.get(120) == value
        for each in (result.parent, result):
            wait_until(lambda each=each: has_status(each.id, "completed"), "its run")  # type: ignore[misc]

    def test_with_a_backend(self, host: HostHarness, settings: Any) -> None:
        """A task that waits is revoked, and one that has no checkpoint is killed."""
        setattr(celery_host, host.name, host.app)
        options = {"APP": f"tests.integrations.celery_host.{host.name}"}
        settings.RUN_CANCEL_BACKENDS = {"celery": {"BACKEND": host.backend, "OPTIONS": options}}
        host.online()
        running = host.task("never_asks").delay("running")
        wait_until(lambda: host.traced("running"), "the start")
        waiting = host.task("works").apply_async(["waiting"], countdown=600)
        cancel_runs([running.id, waiting.id], requested_by="tests", force=True)
        deliver_due()
        wait_until(lambda: host.traced("revoked") == [running.id], "the signal")
        assert run_of(waiting.id).stop_state == "never_started"
        wait_until(lambda: killed(running.id), "the evidence")

    def test_publisher_rolls_back(self, host: HostHarness) -> None:
        """Celery runs the task all the same, as it did before: the run is made at its start."""
        host.online()
        with transaction.atomic():
            result = host.task("add").delay(1)
            transaction.set_rollback(True)
        assert result.get(120) == 3
        wait_until(lambda: has_status(result.id, "completed"), "its run")

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite has one writer at a time.")
    def test_consumer_faster_than_the_commit(self, host: HostHarness) -> None:
        host.online()
        with transaction.atomic():
            make_run()
            result = host.task("add").delay(1)
            assert result.get(120) == 3
        wait_until(lambda: has_status(result.id, "completed"), "its run")
        assert statuses(run_of(result.id)) == ["completed"]

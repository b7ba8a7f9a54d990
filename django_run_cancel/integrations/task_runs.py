"""Creates the runs of tasks: each with the id of its task, below the run that published it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.models.signals import post_save, pre_save
from django.utils import timezone
from django.utils.module_loading import import_string

from django_run_cancel.conf import settings
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.locks import is_refusal
from django_run_cancel.db.retry import retry_transaction
from django_run_cancel.db.trees import lock_ancestors
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution.context import current_run
from django_run_cancel.integrations import recent_runs
from django_run_cancel.integrations.ancestors import stop_with_ancestors
from django_run_cancel.models import AbstractRun, get_run_model, run_rows
from django_run_cancel.safe_text import printable
from django_run_cancel.states import ACTIVE, WAITING, RunStatus

MAX_TITLE_LENGTH = 200

logger = logging.getLogger("django_run_cancel")


@dataclass(frozen=True)
class TaskMessage:
    """One task as its executor publishes or executes it.

    Attributes:
        task_id: Its id at the executor, which becomes the run's id.
        name: Name of the task.
        args: Its arguments by position. They are given to ``RUN_CANCEL_DESCRIBE`` alone.
        kwargs: Its arguments by keyword.
        backend: Alias of the backend that can stop it; blank if none is configured.
        parent_id: Id of the task that published it; blank if none did, or if it is detached.
        is_detached: Whether it goes on when the task before it in a chain is cancelled.
        is_shared: Whether it is published with each of several tasks, as the body of a chord.
    """

    task_id: str
    name: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""
    parent_id: str = ""
    is_detached: bool = False
    is_shared: bool = False


def create_runs(tasks: Sequence[TaskMessage]) -> None:
    """Create the runs of tasks. Those that exist stay as they are.

    All or none: a task that fails as soon as its run can be seen lets those fail that follow it,
    and finds them.

    Args:
        tasks: A task, and those that the executor publishes once it has ended. The run of each is
            below that of its ``parent_id``; if this is also that of the first, below the one before
            it.
    """
    using = run_rows().db
    try:
        created = _create(tasks, using)
    except IntegrityError:
        recent_runs.clear()
        created = _create(tasks, using)
    for new in created:
        if not connections[using].in_atomic_block:
            _keep(new, using)
        if new.parent is not None and _is_known_to_be_cancelled(new.parent):
            with suppress(RunCancelled):
                stop_with_ancestors(new.run)


class _Created(NamedTuple):
    task: TaskMessage
    run: AbstractRun
    parent: AbstractRun | None


def _create(tasks: Sequence[TaskMessage], using: str) -> list[_Created]:
    new = [task for task in tasks if not (task.is_shared and recent_runs.get(using, task.task_id))]
    if len(new) > 1:
        return retry_transaction(partial(_create_together, new), using)
    return _create_each(new)


def _keep(new: _Created, using: str) -> None:
    if new.task.is_shared:
        recent_runs.add(using, new.run)
    # The body of a chord, say. One that is running may be cancelled, and be read again then.
    if new.parent is not None and new.parent.status == RunStatus.QUEUED:
        recent_runs.add(using, new.parent)


def _create_together(tasks: Sequence[TaskMessage], restartable: bool) -> list[_Created]:
    model, using = get_run_model(), run_rows().db
    if _can_be_created_in_bulk(model):
        try:
            with transaction.atomic(using=using):
                return _create_in_bulk(tasks, model, using)
        except DatabaseError as error:
            if not is_refusal(error):
                raise
        # One of them exists, or is described by what no run can have.
    with transaction.atomic(using=using):
        return _create_each(tasks)


def _can_be_created_in_bulk(model: type[AbstractRun]) -> bool:
    """Tell whether nothing of the host's would be left out, such as a receiver of a signal."""
    return (
        model.save is AbstractRun.save
        and not any(each.has_listeners(model) for each in (pre_save, post_save))
        and all(each._meta.concrete_model is model for each in model._meta.all_parents)
    )


def _create_in_bulk(
    tasks: Sequence[TaskMessage], model: type[AbstractRun], using: str
) -> list[_Created]:
    """Create runs with two statements, however many there are."""
    created: dict[str, _Created] = {}
    parents = []
    for task in tasks:
        parent = _parent_of(task, tasks[0], created)
        run = _new_run(task, parent, _described(task))
        created[task.task_id] = _Created(task, run, parent)
        if run.parent is not None and run.parent.pk is None:
            parents.append((run, run.parent))
            run.parent = None
    runs = [new.run for new in created.values()]
    model._base_manager.using(using).bulk_create(runs)
    _read_keys(runs, using)
    for run, parent in parents:
        run.parent = parent
    model._base_manager.using(using).bulk_update([run for run, _ in parents], ["parent"])
    return list(created.values())


def _read_keys(runs: Sequence[AbstractRun], using: str) -> None:
    """Read the keys of new runs where the database returns none."""
    if connections[using].features.can_return_rows_from_bulk_insert:
        return
    keys = dict(run_rows(run_id__in=[run.run_id for run in runs]).values_list("run_id", "pk"))
    for run in runs:
        run.pk = keys[run.run_id]


def _create_each(tasks: Sequence[TaskMessage]) -> list[_Created]:
    created: dict[str, _Created] = {}
    for task in tasks:
        parent = _parent_of(task, tasks[0], created)
        created[task.task_id] = _Created(task, _create_run(task, parent), parent)
    return list(created.values())


def _parent_of(
    task: TaskMessage, first: TaskMessage, created: dict[str, _Created]
) -> AbstractRun | None:
    if task.is_detached:
        return None
    if task.parent_id in created:
        return created[task.parent_id].run
    if created and task.parent_id == first.parent_id:
        return created[next(reversed(created))].run
    return _run_of(task.parent_id) if task.parent_id else None


def _run_of(task_id: str) -> AbstractRun | None:
    running = current_run()
    if running is not None and running.run_id == task_id:
        return running.run  # as nearly always, and without a query
    rows = run_rows(run_id=task_id)
    run: AbstractRun | None = recent_runs.get(rows.db, task_id) or rows.first()
    return run


def _is_known_to_be_cancelled(parent: AbstractRun) -> bool:
    running = current_run()
    if running is not None and running.run is parent:
        return running.cancel_requested
    return parent.status == RunStatus.CANCELLED


def _create_run(task: TaskMessage, parent: AbstractRun | None) -> AbstractRun:
    if described := _described(task):
        try:
            return _save_run(task, parent, described)
        except Exception as error:
            if isinstance(error, DatabaseError) and not is_refusal(error):
                raise
            logger.exception(
                "RUN_CANCEL_DESCRIBE gives %s what its run cannot have.", printable(task.name)
            )
    return _save_run(task, parent, {})


def _new_run(
    task: TaskMessage, parent: AbstractRun | None, described: Mapping[str, Any]
) -> AbstractRun:
    fields = {
        "title": task.name[:MAX_TITLE_LENGTH],
        "tenant": parent.tenant if parent is not None else "",
        "parent": parent,
        **described,
    }
    return get_run_model()(
        run_id=task.task_id,
        status=RunStatus.QUEUED,
        queued_at=timezone.now(),
        backend=task.backend,
        external_id=task.task_id if task.backend else "",
        **fields,
    )


def _save_run(
    task: TaskMessage, parent: AbstractRun | None, described: Mapping[str, Any]
) -> AbstractRun:
    run = _new_run(task, parent, described)
    rows = run_rows(run_id=task.task_id)
    try:
        with transaction.atomic(using=rows.db):
            run.save(using=rows.db, force_insert=True)
    except IntegrityError:
        # A consumer has been quicker, or the message is delivered again: that run stays.
        existing: AbstractRun | None = rows.first()
        if existing is None:
            raise
        _set_parent(existing, run.parent, run.tenant)
        _set_backend(existing, run)
        return existing
    return run


def _set_parent(run: AbstractRun, parent: AbstractRun | None, tenant: str) -> None:
    """Put a run below its parent that a consumer has created, who may not know the parent."""
    if parent is None:
        return
    rows = run_rows(pk=run.pk, parent=None, status__in=ACTIVE)
    with transaction.atomic(using=rows.db):
        line = lock_ancestors(rows.model, parent.pk, rows.db)
        is_above = run.run_id in {each.run_id for each in line}
        is_changed = not is_above and rows.update(parent=parent, tenant=tenant)
    if is_changed:
        run.refresh_from_db()
        with suppress(RunCancelled):
            stop_with_ancestors(run)


def _set_backend(run: AbstractRun, published: AbstractRun) -> None:
    """Say how a run is stopped that a consumer has created, whose settings may name no backend."""
    if published.backend and not run.backend:
        rows = run_rows(pk=run.pk, backend="", status__in=ACTIVE)
        rows.update(backend=published.backend, external_id=published.external_id)


def _described(task: TaskMessage) -> Mapping[str, Any]:
    if settings.DESCRIBE is None:
        return {}
    try:
        described: Mapping[str, Any] = import_string(settings.DESCRIBE)(
            task.name, task.args, task.kwargs
        )
        return described or {}
    except Exception:
        logger.exception("RUN_CANCEL_DESCRIBE cannot describe %s.", printable(task.name))
        return {}


def terminate_dropped(run_ids: Collection[str], reason: str) -> None:
    """End waiting runs whose tasks the executor will not publish, though no task has failed.

    What goes wrong is logged.

    Args:
        run_ids: The runs.
        reason: Why they have ended, for people.
    """
    if not run_ids:
        return
    values = {"status": RunStatus.TERMINATED, "failure_reason": reason}
    try:
        rows = run_rows(run_id__in=run_ids, status__in=WAITING)
        rows.update(**values, finished_at=DatabaseNow())
    except Exception:
        logger.exception("Runs whose tasks will not be published could not be ended.")

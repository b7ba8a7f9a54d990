"""``create_runs()``: creates the runs of tasks, as children of the run that published them."""

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
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.db.locks import is_refusal
from django_run_cancel.db.retry import retry_transaction
from django_run_cancel.db.sessions import in_transaction
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
    """A task that an executor publishes or executes.

    Attributes:
        task_id: Id of the task at the executor, and of its run.
        name: Name of the task.
        args: Positional arguments, used only for ``RUN_CANCEL_DESCRIBE``.
        kwargs: Keyword arguments, used only for ``RUN_CANCEL_DESCRIBE``.
        backend: Alias of the backend that can stop the task; blank if none is configured.
        parent_id: Id of the task that published this one; blank without one, or if detached.
        is_detached: Whether the run continues when the previous task of its chain is cancelled.
        is_shared: Whether several tasks lead to this one, as the members of a chord to its body.
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
    """Create the runs of tasks, in one transaction. Existing runs stay unchanged.

    If a task fails immediately, the runs of the tasks that follow it must exist, so that they can
    be set to failed, too.

    Args:
        tasks: A task, and the tasks that the executor publishes after its end. The parent of each
            run is that with ``parent_id``; if the first task has the same ``parent_id``, it is the
            previous run.
    """
    using = run_rows().db
    try:
        created = _create(tasks, using)
    except IntegrityError:
        recent_runs.clear()
        created = _create(tasks, using)
    for new in created:
        if not in_transaction(using):
            _cache(new, using)
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


def _cache(new: _Created, using: str) -> None:
    if new.task.is_shared:
        recent_runs.add(using, new.run)
    # For example, the body of a chord. Do not cache a running parent, which may be cancelled.
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
        # A run exists already, or RUN_CANCEL_DESCRIBE has returned an invalid value.
    with transaction.atomic(using=using):
        return _create_each(tasks)


def _can_be_created_in_bulk(model: type[AbstractRun]) -> bool:
    """Tell whether ``bulk_create()`` skips no code of the host, such as signal receivers."""
    return (
        model.save is AbstractRun.save
        and not any(each.has_listeners(model) for each in (pre_save, post_save))
        and all(each._meta.concrete_model is model for each in model._meta.all_parents)
    )


def _create_in_bulk(
    tasks: Sequence[TaskMessage], model: type[AbstractRun], using: str
) -> list[_Created]:
    """Create any number of runs with two statements."""
    created: dict[str, _Created] = {}
    parents = []
    for task in tasks:
        parent = _parent_of(task, tasks[0], created)
        run = _new_run(task, parent, _description_fields(task))
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
    """Read the primary keys of new runs if ``bulk_create()`` does not set them."""
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
    return _find_parent(task.parent_id) if task.parent_id else None


def _find_parent(task_id: str) -> AbstractRun | None:
    running = current_run()
    if running is not None and running.run_id == task_id:
        return running.run  # the usual case, without a query
    rows = run_rows(run_id=task_id)
    run: AbstractRun | None = recent_runs.get(rows.db, task_id) or rows.first()
    return run


def _is_known_to_be_cancelled(parent: AbstractRun) -> bool:
    running = current_run()
    if running is not None and running.run is parent:
        return running.cancel_requested
    return parent.status == RunStatus.CANCELLED


def _create_run(task: TaskMessage, parent: AbstractRun | None) -> AbstractRun:
    if described := _description_fields(task):
        try:
            return _save_run(task, parent, described)
        except Exception as error:
            if isinstance(error, DatabaseError) and not is_refusal(error):
                raise
            logger.exception(
                "RUN_CANCEL_DESCRIBE returns fields for %s that a run cannot have.",
                printable(task.name),
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
        # The run exists: the worker has created it first, or the message was redelivered.
        existing: AbstractRun | None = rows.first()
        if existing is None:
            raise
        _set_parent(existing, run.parent, run.tenant)
        _set_backend(existing, run)
        return existing
    return run


def _set_parent(run: AbstractRun, parent: AbstractRun | None, tenant: str) -> None:
    """Set the parent of a run that a worker has created, which may not know the parent."""
    if parent is None:
        return
    rows = run_rows(pk=run.pk, parent=None).filter(is_one_of("status", ACTIVE))
    with transaction.atomic(using=rows.db):
        locked_runs = lock_ancestors(rows.model, parent.pk, rows.db)
        is_above = run.run_id in {each.run_id for each in locked_runs}
        is_changed = not is_above and rows.update(parent=parent, tenant=tenant)
    if is_changed:
        run.refresh_from_db()
        with suppress(RunCancelled):
            stop_with_ancestors(run)


def _set_backend(run: AbstractRun, published: AbstractRun) -> None:
    """Set the backend of a run that a worker has created, whose settings may have no backend."""
    if published.backend and not run.backend:
        rows = run_rows(pk=run.pk, backend="").filter(is_one_of("status", ACTIVE))
        rows.update(backend=published.backend, external_id=published.external_id)


def _description_fields(task: TaskMessage) -> Mapping[str, Any]:
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
    """Set waiting runs to ``terminated`` whose tasks the executor will not publish any more.

    Errors are logged.

    Args:
        run_ids: Public ids.
        reason: Reason, for users.
    """
    if not run_ids:
        return
    values = {"status": RunStatus.TERMINATED, "failure_reason": reason}
    try:
        rows = run_rows(run_id__in=run_ids).filter(is_one_of("status", WAITING))
        rows.update(**values, finished_at=DatabaseNow())
    except Exception:
        logger.exception("Runs whose tasks will not be published could not be ended.")

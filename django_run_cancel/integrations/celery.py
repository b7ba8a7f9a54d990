"""Celery integration: makes each task a run, by one line for a project or for a task.

For all tasks: ``Celery("proj", task_cls="django_run_cancel.integrations.celery:CancellableTask")``.
For one: ``@shared_task(base=CancellableTask)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from celery import current_app
from celery._state import _get_active_apps
from celery.exceptions import Ignore, Reject, Retry
from celery.signals import after_task_publish, task_failure, task_revoked

try:  # Celery's own base class for Django projects
    from celery.contrib.django.task import DjangoTask
except ImportError:  # Celery 5.3
    from celery import Task as DjangoTask

from django_run_cancel.backends.base import DISPATCHED
from django_run_cancel.db.event_loop import orm_is_refused
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import Execution, execution
from django_run_cancel.integrations.celery_canvas import (
    Canvas,
    body_of_chord,
    canvas_of_publisher,
    following_ids,
    tasks_of_canvas,
)
from django_run_cancel.integrations.celery_ends import (
    Replaced,
    end_as_revoked,
    is_published_again,
    is_tried_again,
    name_of_id,
    result_or_ignore,
    send_again_later,
    was_ended_from_outside,
)
from django_run_cancel.integrations.task_runs import terminate_dropped
from django_run_cancel.integrations.tracking import (
    TaskMessage,
    backend_alias,
    cancel_dropped,
    executing,
    fail_dropped,
    is_tracked,
    record_published,
)
from django_run_cancel.models import run_rows

BACKEND = "django_run_cancel.backends.celery.CeleryBackend"

HOUSEKEEPING = frozenset(
    f"celery.{name}" for name in ("backend_cleanup", "chain", "chord", "chord_unlock", "group")
)
"""Celery's internal tasks, which become no runs."""

ACCUMULATE = "celery.accumulate"
"""Task that replaces, under the same id, a task that calls ``self.replace(group)``."""


class CancellableTask(DjangoTask):  # type: ignore[misc]  # Celery is not typed
    """Base class of tasks, each of which becomes a run.

    Functions keep their signature, arguments, result, retries, limits, routes and schedule.

    Attributes:
        run_cancel_detached: Whether the run continues when the run that published it is cancelled.
    """

    abstract = True
    run_cancel_detached = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the function as the run of the task. A direct call executes only the function.

        Raises:
            Ignore: The run has been cancelled or ended by another process, and its end has been
                stored in Celery; or the message is a duplicate, and is published again later if the
                first execution may still die.
        """
        request = self.request
        if _is_only_called(request):
            return super().__call__(*args, **kwargs)
        if orm_is_refused() or not _has_run(self, request):
            return self.run(*args, **kwargs)  # super().__call__() would push another request
        request._protected = 1
        try:
            task = _executed(self, args, kwargs)
            # A worker can receive the task before the publisher has created the runs.
            published = [task]
            if not request.is_eager:
                published = _with_canvas(self.app, task, request.chord, request.chain)
            request.run_canvas = Canvas(frozenset(each.task_id for each in published))
            with executing(task, requeue_on=is_tried_again, published=published) as run:
                request.run_execution = run
                result = result_or_ignore(self.run, *args, **kwargs)
        except (RunCancelled, RunInProgress, TransitionNotAllowed) as refused:
            if refused.run_id != request.id:
                raise  # the task works on other runs, too
            if is_published_again(request, refused):
                return self.run(*args, **kwargs)
            if isinstance(refused, RunInProgress):
                send_again_later(self, args, kwargs)
            elif isinstance(refused, RunCancelled) or was_ended_from_outside(request):
                end_as_revoked(self, str(refused))
            raise Ignore(str(refused)) from refused
        except Reject as rejected:
            if not rejected.requeue:
                _end_dropped(self, goes_on=False)
            raise
        _end_dropped(self, goes_on=not isinstance(result, Ignore))
        if isinstance(result, Ignore):
            raise result
        return result

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Set the run to ``queued``, and then publish the retry, which a worker may start at once.

        Raises:
            RunCancelled: The run has been cancelled, and no retry is published.
            Retry: As Celery does. Its other exceptions are raised, too.
        """
        return _retry(self, super().retry, *args, **kwargs)

    def on_replace(self, sig: Any) -> Any:
        """Set the run to ``queued`` for the task that ``self.replace()`` publishes with its id.

        If that task is not tracked, the run ends with this task.

        Raises:
            RunCancelled: The run has been cancelled, and no task is published.
            Ignore: As Celery does.
        """
        canvas_of_publisher().is_passed_on = True
        task_id = self.request.id
        name = name_of_id(task_id, sig)
        if not _is_tracked(self.app, name, sig.options.get("headers"), task_id):
            return super().on_replace(sig)
        try:
            return _retry(self, super().on_replace, sig)
        except Ignore as sent:
            raise Replaced(str(sent)) from None


class RunTask(DjangoTask):  # type: ignore[misc]  # Celery is not typed
    """Base class of tasks that ``dispatch()`` sends: ``@app.task(base=RunTask)``.

    The first argument of the message is the run id; the function gets the Execution instead. A
    retry sets the run to ``queued``. If the run is cancelled, or another worker executes it, the
    task ends without an error.
    """

    abstract = True

    def __call__(self, run_id: str, *args: Any, **kwargs: Any) -> Any:
        """Execute the run.

        Raises:
            Ignore: The run has been cancelled, or another worker is executing it.
        """
        try:
            with execution(run_id, requeue_on=(Retry,)) as run:
                request = self.request
                if _is_only_called(request):
                    return super().__call__(run, *args, **kwargs)  # it pushes a new request
                request.run_execution, request._protected = run, 1
                return self.run(run, *args, **kwargs)
        except (RunCancelled, RunInProgress) as refused:
            if refused.run_id != run_id:
                raise
            raise Ignore(str(refused)) from refused

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Retry the task, as ``CancellableTask.retry()`` does."""
        return _retry(self, super().retry, *args, **kwargs)


def _is_only_called(request: Any) -> bool:
    """Tell whether a task is called as a function, for example by a test or by its own code."""
    return bool(request.called_directly) or getattr(request, "run_execution", None) is not None


def _retry(task: Any, send: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    run: Execution | None = getattr(task.request, "run_execution", None)
    if run is None or not run.hand_back():  # called directly, or in a transaction
        return send(*args, **kwargs)
    try:
        return send(*args, **kwargs)
    except (Retry, Ignore):
        raise
    except BaseException:
        run.take_back()  # the retry has not been published
        raise


# Publishing a task


@after_task_publish.connect(weak=False, dispatch_uid="django_run_cancel")  # type: ignore[untyped-decorator]  # Celery is not typed
def _after_publish(
    sender: str, body: Any, headers: Mapping[str, Any] | None = None, **kwargs: Any
) -> None:
    """Create the runs of a published task, unless it is a retry."""
    app = _app_of(sender)
    if not headers or headers.get("retries"):
        return
    if not _is_tracked(app, sender, headers, headers["id"]):
        return
    arguments, keywords, embedded = body
    alias = backend_alias(BACKEND)
    parent_id = _parent_id(app, sender, headers.get("parent_id"), arguments)
    task = TaskMessage(headers["id"], sender, arguments, keywords, alias, parent_id)
    tasks = _with_canvas(app, task, embedded.get("chord"), embedded.get("chain"))
    # The task being executed may publish the rest of its own canvas, whose runs exist already.
    canvas = canvas_of_publisher()
    canvas.published.update(each.task_id for each in tasks)
    if task.task_id not in canvas.run_ids:
        record_published(*(each for each in tasks if each.task_id not in canvas.run_ids))


def _with_canvas(
    app: Any, task: TaskMessage, chord: Any, chain: Sequence[Mapping[str, Any]] | None
) -> list[TaskMessage]:
    """Return a task, the bodies of its chords and the later links of its chain."""
    return tasks_of_canvas(task, chord, chain or (), partial(_message_of, app))


def _message_of(app: Any, signature: Mapping[str, Any]) -> TaskMessage | None:
    name, task_id = signature["task"], signature["options"].get("task_id")
    if not task_id or not _is_tracked(app, name, {}):
        return None
    return TaskMessage(
        *(task_id, name, signature["args"], signature["kwargs"], backend_alias(BACKEND)),
        is_detached=_is_detached(app, name),
    )


def _app_of(name: str) -> Any:
    """Return the app that has a task with this name, as the signal does not contain the app."""
    app = current_app._get_current_object()
    if name in app._tasks:
        return app
    return next((each for each in _get_active_apps() if name in each._tasks), app)


def _has_run(task: Any, request: Any) -> bool:
    return _is_tracked(task.app, task.name, request.headers, request.id)


def _is_tracked(app: Any, name: str, headers: Mapping[str, Any] | None, task_id: str = "") -> bool:
    if name in HOUSEKEEPING or (headers and headers.get(DISPATCHED)):
        return False
    if name == ACCUMULATE:
        return bool(task_id) and run_rows(run_id=task_id).exists()
    # A publisher may not have imported the task: then the class of the app decides. Do not use
    # app.tasks, which would finalize the app and import its tasks.
    task = app._tasks.get(name)
    kind = app.Task if task is None else type(task)
    return issubclass(kind, CancellableTask) and is_tracked(name, task_id)


def _is_detached(app: Any, name: str) -> bool:
    return bool(getattr(app._tasks.get(name), "run_cancel_detached", False))


def _parent_id(app: Any, name: str, parent_id: str | None, arguments: Sequence[Any]) -> str:
    """Return the id of the parent run of a task; blank without one, or if it is detached."""
    # An error callback, which gets the id of the failed task, must run if that is cancelled.
    is_callback = list(arguments) == [parent_id]
    return "" if is_callback or _is_detached(app, name) else parent_id or ""


# Executing a task, and its end


def _executed(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskMessage:
    request = task.request
    parent_id = _parent_id(task.app, task.name, request.parent_id, args)
    alias = "" if request.is_eager else backend_alias(BACKEND)
    return TaskMessage(request.id, task.name, args, kwargs, alias, parent_id)


def _end_dropped(task: Any, *, goes_on: bool) -> None:
    """End the waiting runs of a task's canvas that Celery will not publish any more."""
    request = task.request
    canvas: Canvas = request.run_canvas
    if canvas.is_passed_on:
        return
    own = TaskMessage(request.id, task.name)
    kept = _with_canvas(task.app, own, request.chord, request.chain)
    if not goes_on:
        # Without a native join, Celery waits until all members have a result, which hosts may store
        # themselves: the body may still be published.
        is_joined = task.backend.supports_native_join
        kept = [] if is_joined else [each for each in kept if each.is_shared]
    going_on = {own.task_id, *canvas.published, *(each.task_id for each in kept)}
    terminate_dropped(
        canvas.run_ids - going_on, "A task before this one has ended its chain or chord."
    )


@task_revoked.connect(weak=False, dispatch_uid="django_run_cancel")  # type: ignore[untyped-decorator]  # Celery is not typed
def _on_revoked(sender: Any, request: Any, expired: bool = False, **kwargs: Any) -> None:
    """Cancel the run of a task that the host has revoked, and the run of its chord's body."""
    if _has_run(sender, request):
        reason = "The task has expired." if expired else "The task has been revoked."
        body = body_of_chord(request.chord, request.chain or ())
        bodies = [] if body is None else [body["options"]["task_id"]]
        cancel_dropped(request.id, *bodies, requested_by="celery", reason=reason)


@task_failure.connect(weak=False, dispatch_uid="django_run_cancel")  # type: ignore[untyped-decorator]  # Celery is not typed
def _on_failure(sender: Any, task_id: str, exception: BaseException, **kwargs: Any) -> None:
    """Set the runs to failed that fail with a task: later links of its chain, and its chord.

    Celery also sends the signal for a task whose process was lost: then also set its own run.
    """
    request = sender.request
    if not _is_tracked(sender.app, sender.name, request.headers, task_id):
        return
    following: list[str] = []
    if request.id == task_id:  # not in the worker's main process
        following = following_ids(request.chord, request.chain or ())
    fail_dropped(task_id, *following, error=exception)

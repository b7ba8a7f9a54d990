"""Celery: tasks become runs, with one line for a project or one for a task.

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

try:  # what Celery gives to the tasks of Django projects
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
"""Celery's own tasks that are not part of anybody's work."""

ACCUMULATE = "celery.accumulate"
"""What ``self.replace(group)`` goes on as, under the id of the task that is replaced."""


class CancellableTask(DjangoTask):  # type: ignore[misc]
    """Base of tasks that are runs of their own.

    Functions keep their signature, arguments, result, retries, limits, routes and schedule.

    Attributes:
        run_cancel_detached: Whether the run goes on when the run that has published it is
            cancelled.
    """

    abstract = True
    run_cancel_detached = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the run of the task; called directly, only the function.

        Raises:
            Ignore: The run has been cancelled or ended from outside, and Celery knows, or the
                message came twice, and comes again while the first execution lives.
        """
        request = self.request
        if _is_only_called(request):
            return super().__call__(*args, **kwargs)
        if orm_is_refused() or not _has_run(self, request):
            return self.run(*args, **kwargs)  # Celery's own would give it another request
        request._protected = 1
        try:
            task = _executed(self, args, kwargs)
            # A worker can be quicker than the publisher is to create them.
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
        """Leave the run queued, and only then send the task once more: others may be quick.

        Raises:
            RunCancelled: The run has been cancelled: nothing is sent.
            Retry: As Celery does; and what else it raises if the tries are used up, say.
        """
        return _retry(self, super().retry, *args, **kwargs)

    def on_replace(self, sig: Any) -> Any:
        """Leave the run queued for the task that ``self.replace()`` sends under the same id.

        If that task is not tracked, the run ends with this one.

        Raises:
            RunCancelled: The run has been cancelled: nothing is sent.
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


class RunTask(DjangoTask):  # type: ignore[misc]
    """Base of tasks that ``dispatch()`` sends: ``@app.task(base=RunTask)``.

    The task is called with the run id, and its function gets the execution instead. A retry leaves
    the run ``queued``; a run that is cancelled or being worked on already ends the task quietly.
    """

    abstract = True

    def __call__(self, run_id: str, *args: Any, **kwargs: Any) -> Any:
        """Execute the run.

        Raises:
            Ignore: The run has been cancelled, or another worker is at it.
        """
        try:
            with execution(run_id, requeue_on=(Retry,)) as run:
                request = self.request
                if _is_only_called(request):
                    return super().__call__(run, *args, **kwargs)  # with a request of its own
                request.run_execution, request._protected = run, 1
                return self.run(run, *args, **kwargs)
        except (RunCancelled, RunInProgress) as refused:
            if refused.run_id != run_id:
                raise
            raise Ignore(str(refused)) from refused

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """As that of ``CancellableTask``."""
        return _retry(self, super().retry, *args, **kwargs)


def _is_only_called(request: Any) -> bool:
    """Tell whether a task is called as a function, as by a test or by itself."""
    return bool(request.called_directly) or getattr(request, "run_execution", None) is not None


def _retry(task: Any, send: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    run: Execution | None = getattr(task.request, "run_execution", None)
    if run is None or not run.hand_back():  # called directly, say, or in a transaction
        return send(*args, **kwargs)
    try:
        return send(*args, **kwargs)
    except (Retry, Ignore):
        raise
    except BaseException:
        run.take_back()  # nothing has been sent
        raise


# What publishes a task


@after_task_publish.connect(weak=False, dispatch_uid="django_run_cancel")  # type: ignore[untyped-decorator]
def _after_publish(
    sender: str, body: Any, headers: Mapping[str, Any] | None = None, **kwargs: Any
) -> None:
    """Create runs for a task that the broker has taken, unless it is sent once more."""
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
    # A task that goes on with its own canvas, by the next link or the body of the chord, say.
    canvas = canvas_of_publisher()
    canvas.published.update(each.task_id for each in tasks)
    if task.task_id not in canvas.run_ids:
        record_published(*(each for each in tasks if each.task_id not in canvas.run_ids))


def _with_canvas(
    app: Any, task: TaskMessage, chord: Any, chain: Sequence[Mapping[str, Any]] | None
) -> list[TaskMessage]:
    """Return a task with the bodies of its chords and the links that follow in its chain."""
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
    """Return the app that knows a task: the signal does not say which one publishes it."""
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
    # A publisher may know a task by its name alone: then the class of the app decides. Not
    # app.tasks: that imports what the app has declared, if the app allows it.
    task = app._tasks.get(name)
    kind = app.Task if task is None else type(task)
    return issubclass(kind, CancellableTask) and is_tracked(name, task_id)


def _is_detached(app: Any, name: str) -> bool:
    return bool(getattr(app._tasks.get(name), "run_cancel_detached", False))


def _parent_id(app: Any, name: str, parent_id: str | None, arguments: Sequence[Any]) -> str:
    """Return the id of the run above a task; blank if there is none, or it does not matter."""
    # An error callback gets the id of the task that published it, and runs when that is cancelled.
    is_callback = list(arguments) == [parent_id]
    return "" if is_callback or _is_detached(app, name) else parent_id or ""


# What executes it, and how it ends


def _executed(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskMessage:
    request = task.request
    parent_id = _parent_id(task.app, task.name, request.parent_id, args)
    alias = "" if request.is_eager else backend_alias(BACKEND)
    return TaskMessage(request.id, task.name, args, kwargs, alias, parent_id)


def _end_dropped(task: Any, *, goes_on: bool) -> None:
    """End the runs that wait for a task, and that Celery will not publish any more."""
    request = task.request
    canvas: Canvas = request.run_canvas
    if canvas.is_passed_on:
        return
    own = TaskMessage(request.id, task.name)
    kept = _with_canvas(task.app, own, request.chord, request.chain)
    if not goes_on:
        # Without a native join Celery asks whether all members have a result: hosts can store one.
        is_joined = task.backend.supports_native_join
        kept = [] if is_joined else [each for each in kept if each.is_shared]
    going_on = {own.task_id, *canvas.published, *(each.task_id for each in kept)}
    terminate_dropped(
        canvas.run_ids - going_on, "A task before this one has ended its chain or chord."
    )


@task_revoked.connect(weak=False, dispatch_uid="django_run_cancel")  # type: ignore[untyped-decorator]
def _on_revoked(sender: Any, request: Any, expired: bool = False, **kwargs: Any) -> None:
    """Cancel the run of a task that the host has revoked, and the chord that waits for it."""
    if _has_run(sender, request):
        reason = "The task has expired." if expired else "The task has been revoked."
        body = body_of_chord(request.chord, request.chain or ())
        bodies = [] if body is None else [body["options"]["task_id"]]
        cancel_dropped(request.id, *bodies, requested_by="celery", reason=reason)


@task_failure.connect(weak=False, dispatch_uid="django_run_cancel")  # type: ignore[untyped-decorator]
def _on_failure(sender: Any, task_id: str, exception: BaseException, **kwargs: Any) -> None:
    """Let the runs fail that Celery lets fail: links that follow in the chain, and the chord.

    Celery also sends this for a task whose process was lost: its run has had no end then.
    """
    request = sender.request
    if not _is_tracked(sender.app, sender.name, request.headers, task_id):
        return
    following: list[str] = []
    if request.id == task_id:  # not in the worker's main process
        following = following_ids(request.chord, request.chain or ())
    fail_dropped(task_id, *following, error=exception)

"""Executes messages and tasks as a worker of Celery does, in this process."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer

CLASS = "django_run_cancel.integrations.celery:CancellableTask"


def execute_next(app: Celery) -> bool:
    """Execute the message that was published first; return whether there was one."""
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get(app.conf.task_default_queue, no_ack=True)
    if message is None:
        return False
    args, kwargs, embedded = connection.default_channel.message_to_python(message).payload
    request = {**message.headers, **embedded, "args": args, "kwargs": kwargs, "delivery_info": {}}
    task = app.tasks[message.headers["task"]]
    build_tracer(task.name, task, app=app)(message.headers["id"], args, kwargs, request)
    return True


def execute_all(app: Celery) -> None:
    """Execute all messages, and those that are published meanwhile."""
    while execute_next(app):
        pass


class Executing:
    """For classes of tests: an app, and what executes its tasks as a worker does."""

    @pytest.fixture
    def app(self) -> Celery:
        return Celery("executed", backend="cache+memory://", task_cls=CLASS, set_as_current=False)

    def execute(self, task: Any, task_id: str, *args: Any, **request: Any) -> Any:
        task.push_request(
            id=task_id, called_directly=False, is_eager=False, args=args, kwargs={}, **request
        )
        try:
            return task(*args)
        finally:
            task.pop_request()

"""An app of Celery whose messages wait in memory, and the runs of its tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
from celery import Celery, current_app

from django_run_cancel.models import get_run_model
from tests.integrations.celery_messages import CLASS

has_ids = pytest.mark.skipif(
    celery.VERSION < (5, 4), reason="Celery 5.3 gives no id to what follows a group in a chain."
)


@contextlib.contextmanager
def canvas_app() -> Iterator[Celery]:
    """Yield an app with six tasks, whose messages wait in memory until they are executed."""
    before = current_app._get_current_object()
    app = Celery("canvas", broker="memory://", backend="cache+memory://", task_cls=CLASS)
    app.conf.task_default_queue = "canvas"

    for name in ("a", "b", "c", "d", "e", "f"):
        app.task(shared=False, name=name)(result)
    app.finalize()  # which loads the class of the tasks, and what listens to publishers
    app.control.purge()
    yield app
    app.control.purge()
    before.set_current()


def result(*args: Any) -> int:
    return 1


def task_of(app: Celery, body: Callable[[Any], Any], **options: Any) -> Any:
    def execute(self: Any) -> Any:
        return body(self)

    return app.task(shared=False, name="host.task", bind=True, **options)(execute).si()


def parents() -> dict[str, str | None]:
    """Return the parent of each run, by the names of their tasks."""
    return dict(get_run_model()._default_manager.values_list("title", "parent__title"))


def ends() -> dict[str, str]:
    return dict(get_run_model()._default_manager.values_list("title", "status"))

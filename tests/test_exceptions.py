"""Errors survive what carries them between processes."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from django_run_cancel import exceptions
from django_run_cancel.exceptions import RunCancelError

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "RunCancelError": ("what",),
    "TransitionNotAllowed": ("tsk_1", "completed", "running", "Use another."),
    "StateNotWritable": ("tsk_1", ["status"]),
    "RunCancelled": ("tsk_1",),
    "IdempotencyKeyReused": ("key",),
    "RunInProgress": ("tsk_1",),
    "BackendError": ("away",),
    "UnknownBackend": ("celery",),
    "UnknownTask": ("celery", "crawl"),
}


def fail(name: str) -> None:
    raise getattr(exceptions, name)(*ARGUMENTS[name])


def test_all_are_here() -> None:
    found = {
        name
        for name, each in vars(exceptions).items()
        if isinstance(each, type) and issubclass(each, RunCancelError)
    }
    assert found == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_copies(name: str) -> None:
    """Also by its type and arguments, as result backends without pickle do it."""
    error = getattr(exceptions, name)(*ARGUMENTS[name])
    error.add_note("seen in Rome")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert (str(other), vars(other)) == (str(error), vars(error))
    assert str(type(error)(*error.args)) == str(error)


def test_process_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for name in ARGUMENTS:
            with pytest.raises(getattr(exceptions, name)) as caught:
                pool.submit(fail, name).result(120)
            assert caught.value.args == ARGUMENTS[name]


def test_messages() -> None:
    assert [str(getattr(exceptions, name)(*args)) for name, args in ARGUMENTS.items()] == [
        "what",
        "Run tsk_1 is completed and cannot become running. Use another.",
        "save() does not write status of run tsk_1: use a mark_…() method or cancel_runs().",
        "Run tsk_1 has been cancelled.",
        "Idempotency key 'key' was used before for another request.",
        "Run tsk_1 is being executed already.",
        "away",
        "RUN_CANCEL_BACKENDS has no backend 'celery'.",
        "The backend 'celery' has no task 'crawl'.",
    ]
    gone = exceptions.TransitionNotAllowed("tsk_1", None, "running")
    assert str(gone) == "Run tsk_1 does not exist and cannot become running."

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest, TaskCall, get_backend
from django_run_cancel.backends.base import BackendError
from django_run_cancel.exceptions import UnknownBackend
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import DummyBackend

PATH = "django_run_cancel.testing.DummyBackend"


def test_remembers_what_it_is_told() -> None:
    backend = DummyBackend("mine", {})
    run = get_run_model()(external_id="a")
    request = StopRequest("tsk_1", "a", True)
    backend.dispatch(run)
    assert backend.stop([request], force=True) == {"a": StopOutcome.TOLD}
    assert (backend.dispatched, backend.stopped) == (["a"], [(request, True)])
    backend.outcome = BackendError("away")
    assert backend.stop([request], force=False) == {"a": backend.outcome}
    backend.check_call(TaskCall("anything", options={"any": 1}))
    with pytest.raises(BackendError, match="away"):
        backend.dispatch(run)
    backend.clear()
    assert (backend.dispatched, backend.stopped) == ([], [])
    assert backend.check(deploy=True) == []


def test_get_backend__one_for_each_configuration(settings: object) -> None:
    settings.RUN_CANCEL_BACKENDS = {  # type: ignore[attr-defined]
        "a": {"BACKEND": PATH},
        "b": {"BACKEND": PATH, "OPTIONS": {"TIMEOUT": 5}},
    }
    a, b = get_backend("a"), get_backend("b")
    assert get_backend("a") is a is not b
    assert (a.alias, a.timeout, b.alias, b.timeout) == ("a", 2.0, "b", 5.0)
    settings.RUN_CANCEL_BACKENDS = {"a": {"BACKEND": PATH, "OPTIONS": {"TIMEOUT": 1}}}  # type: ignore[attr-defined]
    assert get_backend("a").timeout == 1.0
    with pytest.raises(UnknownBackend, match="'b'"):
        get_backend("b")


def test_options__refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="unknown OPTIONS: URL"):
        DummyBackend("mine", {"URL": 1})


def test_base__does_nothing_by_itself() -> None:
    backend = BaseBackend("mine", {})
    run = get_run_model()()
    assert backend.new_external_id(run) != backend.new_external_id(run)
    with pytest.raises(NotImplementedError):
        backend.dispatch(run)
    with pytest.raises(NotImplementedError):
        backend.stop([], force=False)


def test_backend_without_a_choice_of_tasks() -> None:
    backend = BaseBackend("mine", {})
    backend.check_call(TaskCall())
    with pytest.raises(TypeError, match="takes no task"):
        backend.check_call(TaskCall("crawl"))
    with pytest.raises(TypeError, match="takes no countdown"):
        backend.check_call(TaskCall(options={"countdown": 1}))

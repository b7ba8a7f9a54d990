from __future__ import annotations

import pytest

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution
from django_run_cancel.testing import cancel_now, wait_until
from tests.helpers import make_run


@pytest.mark.django_db
def test_cancel_now__seen_in_the_transaction_of_the_test() -> None:
    """The thread that polls cannot look into it."""
    run = make_run()
    with execution(run.run_id) as running:
        running.checkpoint()
        result = cancel_now(run, reason="Enough")
        with pytest.raises(RunCancelled):
            running.checkpoint()
    assert result.cancelled == [run.run_id]
    assert running.cancellation == result.cancellation
    assert result.cancellation.reason == "Enough"


def test_wait_until() -> None:
    answers = iter([False, True])
    wait_until(lambda: next(answers), "the second answer")
    with pytest.raises(AssertionError, match=r"Waited 0\.01 s for nothing"):
        wait_until(lambda: False, "nothing", seconds=0.01)

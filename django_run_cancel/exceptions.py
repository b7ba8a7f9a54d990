"""Every error that this package raises on purpose has one base: RunCancelError."""

from __future__ import annotations

import traceback


class RunCancelError(Exception):
    """Base of all errors raised by django-run-cancel."""


class TransitionNotAllowed(RunCancelError):
    """A run could not move to the status that was asked for.

    Attributes:
        run_id: Public id of the run.
        current: Status found in the database, or None when the run is gone.
        target: Status that was asked for.
    """

    def __init__(self, run_id: str, current: str | None, target: str, hint: str = "") -> None:
        self.run_id = run_id
        self.current = current
        self.target = target
        found = "does not exist" if current is None else f"is {current}"
        super().__init__(f"Run {run_id} {found} and cannot become {target}.{hint and ' ' + hint}")


class StateNotWritable(RunCancelError):
    """``save()`` was asked to write fields that belong to the state machine.

    Attributes:
        run_id: Public id of the run.
        fields: Names of these fields.
    """

    def __init__(self, run_id: str, fields: list[str]) -> None:
        self.run_id = run_id
        self.fields = fields
        super().__init__(
            f"save() does not write {', '.join(fields)} of run {run_id}: "
            "use a mark_…() method or cancel_runs()."
        )


class RunCancelled(RunCancelError):
    """The run has been cancelled: stop working on it.

    Raised in running code, for example when it tries to create a child of a cancelled run.

    Attributes:
        run_id: Public id of the run.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"Run {run_id} has been cancelled.")


class IdempotencyKeyReused(RunCancelError):
    """An idempotency key came back with another request than the one it was first used for."""

    def __init__(self, idempotency_key: str) -> None:
        self.idempotency_key = idempotency_key
        super().__init__(
            f"Idempotency key {idempotency_key!r} was used before for another request."
        )


class RunInProgress(RunCancelError):
    """Somebody else is executing this run already, for example after a redelivery.

    Attributes:
        run_id: Public id of the run.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"Run {run_id} is being executed already.")


class BackendError(RunCancelError):
    """An executor could not be reached, or refused what it was told."""


class UnknownBackend(BackendError):
    """A run names a backend that ``RUN_CANCEL_BACKENDS`` does not have.

    Attributes:
        alias: The name.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        super().__init__(f"RUN_CANCEL_BACKENDS has no backend {alias!r}.")


def describe(error: BaseException, max_length: int) -> str:
    """Return an error and its notes as text that every database can store.

    Args:
        error: Any, also one that cannot be turned into text.
        max_length: Characters that are kept.
    """
    text = "".join(traceback.format_exception_only(error)).strip()[:max_length]
    # What PostgreSQL cannot store.
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()

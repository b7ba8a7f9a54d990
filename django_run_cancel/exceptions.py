"""Every error that this package raises on purpose has one base: RunCancelError.

The arguments of an error are its ``args``, and its message is made when it is shown. So errors
survive pickling, copying, process pools and result backends.
"""

from __future__ import annotations


class RunCancelError(Exception):
    """Base of all errors raised by django-run-cancel."""


class TransitionNotAllowed(RunCancelError):
    """A run could not move to the status that was asked for.

    Attributes:
        run_id: Public id of the run.
        current: Status found in the database, or None when the run is gone.
        target: Status that was asked for.
        hint: What to do, or who is in the way; blank if there is nothing to say.
    """

    def __init__(self, run_id: str, current: str | None, target: str, hint: str = "") -> None:
        super().__init__(run_id, current, target, hint)
        self.run_id = run_id
        self.current = current
        self.target = target
        self.hint = hint

    def __str__(self) -> str:
        found = "does not exist" if self.current is None else f"is {self.current}"
        message = f"Run {self.run_id} {found} and cannot become {self.target}."
        return f"{message} {self.hint}".strip()


class StateNotWritable(RunCancelError):
    """``save()`` was asked to write fields that belong to the state machine.

    Attributes:
        run_id: Public id of the run.
        fields: Names of these fields.
    """

    def __init__(self, run_id: str, fields: list[str]) -> None:
        super().__init__(run_id, fields)
        self.run_id = run_id
        self.fields = fields

    def __str__(self) -> str:
        return (
            f"save() does not write {', '.join(self.fields)} of run {self.run_id}: "
            "use a mark_…() method or cancel_runs()."
        )


class RunCancelled(RunCancelError):
    """The run has been cancelled: stop working on it.

    Raised in running code, for example when it tries to create a child of a cancelled run.

    Attributes:
        run_id: Public id of the run.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"Run {self.run_id} has been cancelled."


class IdempotencyKeyReused(RunCancelError):
    """An idempotency key came back with another request than the one it was first used for.

    Attributes:
        idempotency_key: The key.
    """

    def __init__(self, idempotency_key: str) -> None:
        super().__init__(idempotency_key)
        self.idempotency_key = idempotency_key

    def __str__(self) -> str:
        return f"Idempotency key {self.idempotency_key!r} was used before for another request."


class RunInProgress(RunCancelError):
    """Another execution has this run already, for example after a redelivery.

    Attributes:
        run_id: Public id of the run.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"Run {self.run_id} is being executed already."


class BackendError(RunCancelError):
    """An executor could not be reached, or refused what it was told."""


class UnknownBackend(BackendError):
    """A run names a backend that ``RUN_CANCEL_BACKENDS`` does not have.

    Attributes:
        alias: The name.
    """

    def __init__(self, alias: str) -> None:
        super().__init__(alias)
        self.alias = alias

    def __str__(self) -> str:
        return f"RUN_CANCEL_BACKENDS has no backend {self.alias!r}."


class UnknownTask(BackendError):
    """A backend has no task with the name that was given.

    Attributes:
        alias: Alias of the backend.
        name: Name of the task.
    """

    def __init__(self, alias: str, name: str) -> None:
        super().__init__(alias, name)
        self.alias = alias
        self.name = name

    def __str__(self) -> str:
        return f"The backend {self.alias!r} has no task {self.name!r}."

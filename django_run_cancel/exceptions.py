"""Exceptions raised by this package; all inherit from ``RunCancelError``.

Each passes its constructor's arguments to ``super().__init__()`` and builds its message in
``__str__``. So it can be pickled, as process pools and result backends do.
"""

from __future__ import annotations


class RunCancelError(Exception):
    """Base of all errors raised by django-run-cancel."""


class TransitionNotAllowed(RunCancelError):
    """The run cannot change to the requested status.

    Attributes:
        run_id: Public id of the run.
        current: Status in the database; None if the run does not exist.
        target: The requested status.
        hint: Additional sentence of the message: the reason or a remedy; may be blank.
    """

    def __init__(self, run_id: str, current: str | None, target: str, hint: str = "") -> None:
        super().__init__(run_id, current, target, hint)
        self.run_id = run_id
        self.current = current
        self.target = target
        self.hint = hint

    def __str__(self) -> str:
        state = "does not exist" if self.current is None else f"is {self.current}"
        message = f"Run {self.run_id} {state} and cannot become {self.target}."
        return f"{message} {self.hint}".strip()


class StateNotWritable(RunCancelError):
    """``save()`` was called with changed fields that only transitions may write.

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
    """An idempotency key was sent again with a different request.

    Attributes:
        idempotency_key: The key.
    """

    def __init__(self, idempotency_key: str) -> None:
        super().__init__(idempotency_key)
        self.idempotency_key = idempotency_key

    def __str__(self) -> str:
        return f"Idempotency key {self.idempotency_key!r} was used before for another request."


class RunInProgress(RunCancelError):
    """Another execution owns the run, for example after the queue has redelivered a message.

    Attributes:
        run_id: Public id of the run.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"Run {self.run_id} is being executed already."


class BackendError(RunCancelError):
    """The executor could not be reached, or refused the request."""


class UnknownBackend(BackendError):
    """A run names a backend that ``RUN_CANCEL_BACKENDS`` does not have.

    Attributes:
        alias: The unknown alias.
    """

    def __init__(self, alias: str) -> None:
        super().__init__(alias)
        self.alias = alias

    def __str__(self) -> str:
        return f"RUN_CANCEL_BACKENDS has no backend {self.alias!r}."


class UnknownTask(BackendError):
    """The executor of a backend has no task with the given name.

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

"""The runs of a Celery canvas: of a task, the links of its chain and the bodies of its chords."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery._state import get_current_task

from django_run_cancel.integrations.task_runs import TaskMessage

Signature = Mapping[str, Any]

MessageOf = Callable[[Signature], TaskMessage | None]
"""Returns the task of a signature; None if it has no id yet, or is not tracked."""


@dataclass
class Canvas:
    """The runs that exist since that of a task exists which a worker is executing.

    Attributes:
        run_ids: The ids of these runs.
        published: Those that the task itself has published.
        is_passed_on: Whether another task that has replaced this one goes on with them.
    """

    run_ids: frozenset[str] = frozenset()
    published: set[str] = field(default_factory=set)
    is_passed_on: bool = False


def canvas_of_publisher() -> Canvas:
    """Return the canvas of the task that is being executed; an empty one outside of tasks."""
    task = get_current_task()
    canvas = None if task is None else getattr(task.request, "run_canvas", None)
    return canvas or Canvas()


def tasks_of_canvas(
    task: TaskMessage, chord: Signature | None, chain: Sequence[Signature], message_of: MessageOf
) -> list[TaskMessage]:
    """Return the tasks whose runs are created with that of a task, each after its parent.

    Args:
        task: The task.
        chord: The body of the chord that it is a member of.
        chain: What follows in its chain, which Celery keeps in reverse.
        message_of: Returns the task of a signature.

    Returns:
        The bodies of its chords from the outermost to its own, each followed by the links after
        it; then the task, and the links after that.
    """
    # Of a chord, the run of the body is above those of its members: its id is what callers get.
    tasks = []
    parent_id = task.parent_id
    for body in reversed(list(_bodies(chord, chain))):
        if (message := message_of(body)) is not None:
            shared = [replace(message, parent_id=parent_id, is_detached=False)]
            parent_id = message.task_id
            shared += _links(body["options"].get("chain") or (), parent_id, message_of)
            tasks += [replace(each, is_shared=True) for each in shared]
    tasks.append(replace(task, parent_id=parent_id))
    return [*tasks, *_links(chain, task.task_id, message_of)]


def body_of_chord(chord: Signature | None, chain: Sequence[Signature]) -> Signature | None:
    """Return the body of the chord that a task belongs to, by itself or by the end of its chain."""
    return next(_bodies(chord, chain), None)


def following_ids(chord: Signature | None, chain: Sequence[Signature]) -> list[str]:
    """Return the ids of what Celery lets fail with a task: links, and the chord with its links."""
    body = body_of_chord(chord, chain)
    signatures = [*chain, *([] if body is None else [body, *(body["options"].get("chain") or ())])]
    return [str(_last_of(each)["options"].get("task_id", "")) for each in signatures]


def _bodies(chord: Signature | None, chain: Sequence[Signature]) -> Iterator[Signature]:
    """Yield the body of the chord of a task, that of the chord which it is a member of, and so on.

    Without an id it has not been published by a chord.
    """
    chords = [chord, *(link["options"].get("chord") for link in chain)]
    body = next((each for each in chords if each and each["options"].get("task_id")), None)
    while body and body["options"].get("task_id"):
        yield body
        body = body["options"].get("chord")


def _links(
    chain: Sequence[Signature], parent_id: str, message_of: MessageOf
) -> Iterator[TaskMessage]:
    for link in reversed(chain):
        message = message_of(_last_of(link))
        if message is None:
            return  # what comes after it is recorded when it is published
        yield replace(message, parent_id=parent_id)
        parent_id = message.task_id


def _last_of(signature: Signature) -> Signature:
    """Return the body of a chord, whose id is that of its result; another signature itself."""
    while signature["task"] == "celery.chord":
        signature = signature["kwargs"]["body"]
    return signature

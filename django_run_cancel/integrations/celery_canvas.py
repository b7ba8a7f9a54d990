"""Runs of a Celery canvas: of a task, the later links of its chain and the bodies of its chords."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery._state import get_current_task

from django_run_cancel.integrations.task_runs import TaskMessage

Signature = Mapping[str, Any]

MessageOf = Callable[[Signature], TaskMessage | None]
"""Type of a function that returns the task of a signature; None without an id or a run."""


@dataclass
class Canvas:
    """The runs that were created together with that of the task a worker is executing.

    Attributes:
        run_ids: Ids of these runs.
        published: Ids of those whose task this task has published itself.
        is_passed_on: Whether another task has replaced this one, and takes over its canvas.
    """

    run_ids: frozenset[str] = frozenset()
    published: set[str] = field(default_factory=set)
    is_passed_on: bool = False


def canvas_of_publisher() -> Canvas:
    """Return the canvas of the task that is being executed; an empty one outside of a task."""
    task = get_current_task()
    canvas = None if task is None else getattr(task.request, "run_canvas", None)
    return canvas or Canvas()


def tasks_of_canvas(
    task: TaskMessage, chord: Signature | None, chain: Sequence[Signature], message_of: MessageOf
) -> list[TaskMessage]:
    """Return the tasks whose runs are created together with that of a task, parents first.

    Args:
        task: The task.
        chord: Body of the chord of which the task is a member.
        chain: Later links of the task's chain, in reverse order, as in Celery's messages.
        message_of: Returns the task of a signature.

    Returns:
        The bodies of the chords from the outermost to the task's own, each followed by its links;
        then the task, followed by its links.
    """
    # The body's run is the parent of the members' runs, as callers get the id of the body.
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
    """Return the body of the chord of which a task, or the last link of its chain, is a member."""
    return next(_bodies(chord, chain), None)


def following_ids(chord: Signature | None, chain: Sequence[Signature]) -> list[str]:
    """Return the ids of tasks that fail with a task: links, and the chord's body with its links."""
    body = body_of_chord(chord, chain)
    signatures = [*chain, *([] if body is None else [body, *(body["options"].get("chain") or ())])]
    return [str(_last_of(each)["options"].get("task_id", "")) for each in signatures]


def _bodies(chord: Signature | None, chain: Sequence[Signature]) -> Iterator[Signature]:
    """Yield the bodies of nested chords, from the innermost, of which the task is a member.

    A body without an id does not belong to a published chord.
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
            return  # runs of later links are created when these are published
        yield replace(message, parent_id=parent_id)
        parent_id = message.task_id


def _last_of(signature: Signature) -> Signature:
    """Return the body if a signature is a chord, whose result has its id; else the signature."""
    while signature["task"] == "celery.chord":
        signature = signature["kwargs"]["body"]
    return signature

"""A model of the runs in a few lines of sets and dicts, with which the package is compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.faults.invariants import ACTIVE, WAITING

MOVES = {
    "mark_queued": ("queued", {"created", "running", "paused"}),
    "mark_running": ("running", {"created", "queued", "paused"}),
    "mark_paused": ("paused", {"running"}),
    "mark_completed": ("completed", {"running"}),
    "mark_failed": ("failed", ACTIVE),
    "mark_terminated": ("terminated", ACTIVE),
    "mark_timed_out": ("timed_out", ACTIVE),
}
"""What each method of a run makes of it, and of which statuses."""


@dataclass
class Expected:
    """What a run should be."""

    status: str
    parent: str | None = None
    has_started: bool = False
    has_executor: bool = False
    stop_state: str = ""
    is_forced: bool = False
    is_told: bool = False


class Model:
    """What all runs should be, and which of them are still to be cancelled.

    Args:
        max_tree: Descendants that are cancelled at once.

    Attributes:
        runs: By id.
        bulks: Ids that bulk cancellations have not come to, by the key of the record.
        postponed: Ids of cancelled runs of which the descendants are still to be cancelled.
    """

    def __init__(self, max_tree: int) -> None:
        self.max_tree = max_tree
        self.runs: dict[str, Expected] = {}
        self.bulks: dict[int, list[str]] = {}
        self.postponed: set[str] = set()

    def is_below_cancelled(self, run_id: str | None) -> bool:
        while run_id is not None:
            if self.runs[run_id].status == "cancelled":
                return True
            run_id = self.runs[run_id].parent
        return False

    def below(self, roots: Iterable[str]) -> set[str]:
        found: set[str] = set()
        new = set(roots)
        while new:
            new = {key for key, run in self.runs.items() if run.parent in new} - found
            found |= new
        return found

    def move(self, run_id: str, how: str) -> bool:
        """Move a run if that is allowed, and tell whether it is."""
        to, sources = MOVES[how]
        run = self.runs[run_id]
        if run.status not in sources:
            return False
        run.status = to
        run.has_started |= to == "running"
        return True

    def cancel(self, asked: Iterable[str], *, force: bool = False) -> tuple[list[str], list[str]]:
        """Cancel runs, and return what is to be answered: those cancelled, and the others."""
        asked = list(dict.fromkeys(asked))
        known = [run_id for run_id in asked if run_id in self.runs]
        done = [each for each in known if self.runs[each].status in {*ACTIVE, "cancelled"}]
        is_at_once = len(self.below(known) - set(known)) <= self.max_tree
        if not is_at_once:
            self.postponed |= set(done)
        for run_id in [*done, *(self.below(done) if is_at_once else ())]:
            self.end(run_id, force=force)
        return done, [run_id for run_id in asked if run_id not in done]

    def end(self, run_id: str, *, force: bool = False) -> None:
        """Cancel one run, if it is active; with force, also if it is stopping."""
        run = self.runs[run_id]
        if run.status in ACTIVE:
            never_started = run.status in WAITING and not run.has_started
            run.status = "cancelled"
            run.stop_state = "never_started" if never_started else "stopping"
            run.is_told = run.has_executor
            run.is_forced = force and run.has_executor
        elif force and run.stop_state == "stopping":
            run.is_forced |= run.has_executor

    def advance(self) -> None:
        """Do all that was left for later."""
        for run_ids in self.bulks.values():
            done, _ = self.cancel(run_ids)
            self.postponed |= set(done)
        for run_id in self.below(self.postponed):
            self.end(run_id)
        self.bulks, self.postponed = {}, set()

    def to_be_cancelled(self) -> set[str]:
        """Return the ids that ``advance`` may cancel."""
        roots = {run_id for run_ids in self.bulks.values() for run_id in run_ids}
        return roots | self.below(roots | self.postponed)

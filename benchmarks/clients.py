"""Eight processes that cancel 100 runs each at the same time: throughput, p95, and true answers.

Run it with ``python -m benchmarks.clients [--rounds N] [--save]``. ``DATABASE_URL`` chooses the
server; the database is made for the occasion. First each client has runs of its own, then all
choose from the same runs. Afterwards each answer is compared with the rows: what was answered as
cancelled is cancelled, once, by the record that says so.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter, defaultdict
from typing import Any

from benchmarks.figures import Figures, arguments, own_database
from benchmarks.processes import call_together

CLIENTS = 8
IDS = 100
SHARED = 400
"""Runs from which all clients choose in a round, if they share them."""


def main() -> None:
    given = arguments(__doc__, rounds=20)
    figures = Figures(
        "clients",
        *("runs of the clients", "clients", "requests a second", "runs named a second"),
        *("median ms", "p95 ms", "times one client", "errors", "false answers"),
    )
    with own_database():
        alone = None
        for kind, clients in (("their own", 1), ("their own", CLIENTS), ("the same", CLIENTS)):
            answers, seconds, rate = measure(kind, clients, given.rounds)
            alone = alone or rate
            p95 = statistics.quantiles(seconds, n=20)[-1]
            figures.add(
                *(kind, clients, round(rate, 1), round(rate * IDS)),
                *(round(1_000 * each, 1) for each in (statistics.median(seconds), p95)),
                round(rate / alone, 2),
                *(sum("error" in answer for answer in answers), false_answers(answers)),
            )
        if given.save:
            figures.save()


def measure(kind: str, clients: int, rounds: int) -> tuple[list[Any], list[float], float]:
    """Return the answers, the seconds that each took, and requests a second of all clients."""
    parts = parts_of_runs(kind, clients, rounds)
    results = call_together(cancel_parts, parts)
    answers = [answer for _, part in results for answer in part]
    rate = sum(len(part) / seconds for seconds, part in results)
    return answers, [answer["seconds"] for answer in answers], rate


def parts_of_runs(kind: str, clients: int, rounds: int) -> list[list[list[str]]]:
    """Return the ids for each client and round."""
    from tests.helpers import ids, make_runs

    if kind == "their own":
        made = ids(make_runs(clients * rounds * IDS, "running"))
        lists = [made[start : start + IDS] for start in range(0, len(made), IDS)]
        return [lists[number::clients] for number in range(clients)]
    shared = [ids(make_runs(SHARED, "running")) for _ in range(rounds)]
    chance = random.Random(1)
    return [[chance.sample(runs, IDS) for runs in shared] for _ in range(clients)]


def cancel_parts(parts: list[list[str]]) -> tuple[float, list[dict[str, Any]]]:
    """Cancel lists of runs one after the other; return the seconds for all, and the answers."""
    from django.db import DatabaseError

    from django_run_cancel.cancellation import cancel_runs

    answers = []
    first = time.perf_counter()
    for run_ids in parts:
        begin = time.perf_counter()
        answer: dict[str, Any] = {"asked": run_ids}
        try:
            result = cancel_runs(run_ids, requested_by="benchmark")
        except DatabaseError as error:
            answer["error"] = repr(error)
        else:
            answer |= {"cancelled": list(result.cancelled), "failed": list(result.failed)}
            assert result.cancellation is not None
            answer["record"] = result.cancellation.cancellation_id
        answers.append({**answer, "seconds": time.perf_counter() - begin})
    return time.perf_counter() - first, answers


def false_answers(answers: list[dict[str, Any]]) -> int:
    """Return how many answers are not what the rows say."""
    from django_run_cancel.models import CancellationItem, get_run_model

    cancelled_by = defaultdict(set)
    rows = get_run_model()._base_manager.filter(status="cancelled")
    for run_id, record in rows.values_list("run_id", "cancellation__cancellation_id"):
        cancelled_by[record].add(run_id)
    cancelled = set[str]().union(*cancelled_by.values())
    items = CancellationItem.objects.values_list(
        "cancellation__cancellation_id", "run_id", "outcome"
    )
    outcomes = {(record, run_id): outcome for record, run_id, outcome in items}
    times = Counter(run_id for (_, run_id), outcome in outcomes.items() if outcome == "cancelled")
    wrong = 0
    for answer in answers:
        if "error" in answer:
            continue
        asked, record = answer["asked"], answer["record"]
        by_this = {run_id for run_id in asked if outcomes[record, run_id] == "cancelled"}
        is_true = answer["cancelled"] == asked and not answer["failed"]
        is_true &= all(run_id in cancelled and times[run_id] == 1 for run_id in asked)
        wrong += not (is_true and by_this == cancelled_by[record])
    return wrong


if __name__ == "__main__":
    main()

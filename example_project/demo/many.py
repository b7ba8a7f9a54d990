"""The first part: one request cancels runs in all kinds of states, and nothing else."""

from __future__ import annotations

import secrets
from collections import Counter
from io import StringIO
from typing import NamedTuple

from django.core.management import call_command

from demo.client import Answer, Client, Runs
from demo.report import abridged, expect, heading, shortened, show_answer


class Group(NamedTuple):
    """Runs that are expected to fare alike.

    Attributes:
        label: What to call them.
        run_ids: Their ids.
        after: The status that they should end in; None for runs that do not exist.
        requested: Whether the request names them. Other runs are below one that it names.
    """

    label: str
    run_ids: list[str]
    after: str | None
    requested: bool = True


def cancel_many(client: Client, groups: list[Group]) -> None:
    """Cancel runs, show and check what came of it, and do it again.

    Raises:
        DemoFailed: An expectation does not hold.
    """
    before = client.runs()
    # Mixed, to see that the answer keeps the order.
    asked = sorted(
        (run_id for group in groups if group.requested for run_id in group.run_ids),
        key=lambda run_id: run_id[::-1],
    )
    heading("The request")
    print("POST /v1/runs/cancel")
    print(f"x-api-key: {shortened(client.key)}")
    print(f'{{"run_ids": {abridged(asked)}}}')
    answer = client.call("/v1/runs/cancel", {"run_ids": asked})
    heading("The answer")
    show_answer(answer)
    after = client.runs()
    heading("What it did")
    show_table(groups, before, after)
    heading("Checked")
    check_first(client, groups, asked, answer, before, after)

    heading("The same request again")
    again = client.call("/v1/runs/cancel", {"run_ids": asked})
    show_answer(again)
    heading("Checked")
    check_again(client, answer, again, after)


def command(*args: str) -> list[str]:
    """Run a management command and return the lines that it prints."""
    output = StringIO()
    call_command(*args, stdout=output, stderr=StringIO())
    return output.getvalue().splitlines()


def seed(tenant: str) -> list[Group]:
    """Create runs in all kinds of states; 100 ids are to be asked for."""

    def runs(count: int, status: str, *options: str) -> list[str]:
        return command("seed_runs", "--count", str(count), "--status", status, *options)

    own = ("--tenant", tenant)
    workflow = runs(1, "running", "--type", "workflow", *own)
    below = ("--parent", workflow[0])
    return [
        Group("queued tasks", runs(55, "queued", *own), "cancelled"),
        Group("running tasks", runs(25, "running", *own), "cancelled"),
        Group("paused tasks", runs(5, "paused", *own), "cancelled"),
        Group("completed tasks", runs(10, "completed", *own), "completed"),
        Group("failed tasks", runs(2, "failed", *own), "failed"),
        Group("cancelled before", runs(1, "cancelled", *own), "cancelled"),
        Group("unknown id", [f"tsk_{secrets.token_hex(16)}"], None),
        Group("workflow", workflow, "cancelled"),
        Group("- queued pages", runs(4, "queued", *below), "cancelled", requested=False),
        Group("- running pages", runs(3, "running", *below), "cancelled", requested=False),
        Group("- completed pages", runs(2, "completed", *below), "completed", requested=False),
    ]


def show_table(groups: list[Group], before: Runs, after: Runs) -> None:
    """Print what became of each group."""
    row = "{:>5}  {:<18} {:<12} {:<12} {}".format
    print(row("runs", "which", "before", "after", "code"))

    def values(runs: Runs, run_ids: list[str], name: str) -> str:
        found: Counter[str] = Counter(
            runs[run_id][name] if run_id in runs else "-" for run_id in run_ids
        )
        if len(found) == 1:
            return next(iter(found)).replace("_", " ")
        return ", ".join(f"{count} {value}" for value, count in found.items())

    for label, run_ids, _, _ in groups:
        statuses = [values(runs, run_ids, "status") for runs in (before, after)]
        print(row(len(run_ids), label, *statuses, values(after, run_ids, "stop_state")).rstrip())
    print(
        "\nThe request did not name the pages: they were cancelled with their workflow. Runs that"
    )
    print("that are stopping had started, and nobody has reported yet that their code has ended.")


def check_first(
    client: Client,
    groups: list[Group],
    asked: list[str],
    answer: Answer,
    before: Runs,
    after: Runs,
) -> None:
    """Check what the first request has done.

    Raises:
        DemoFailed: It has done something else.
    """
    end = {run_id: group.after for group in groups for run_id in group.run_ids}
    cancelled, failed = answer.body["cancelled"], answer.body["failed"]
    expect(len(asked) == 100, "100 ids were sent in one request")
    expect(
        cancelled == [run_id for run_id in asked if end[run_id] == "cancelled"],
        f'"cancelled" names the {len(cancelled)} runs that are cancelled now, in request order',
    )
    expect(
        failed == [run_id for run_id in asked if end[run_id] != "cancelled"],
        f'"failed" names the {len(failed)} that had finished or do not exist, in request order',
    )
    expect(
        {run_id: run["status"] for run_id, run in after.items()}
        == {run_id: status for run_id, status in end.items() if status},
        f"each of the {len(after)} runs has the status that it should, children included",
    )
    final = [run_id for run_id, run in before.items() if run["finished_at"]]
    expect(
        all(before[run_id] == after[run_id] for run_id in final),
        f"the {len(final)} runs that had ended before are untouched",
    )
    cancellation_id = answer.headers["Cancellation-Id"]
    changed = [run for run_id, run in after.items() if run_id not in final]
    expect(
        all(run["cancellation_id"] == cancellation_id for run in changed),
        f"the {len(changed)} others name this request as the one that cancelled them",
    )
    record = client.call(f"/v1/cancellations/{cancellation_id}").body
    counts = ("total_count", "cancelled_count", "failed_count", "cascaded_count")
    cascaded = len(changed) + 1 - len(cancelled)
    expect(
        [record[name] for name in counts] == [len(asked), len(cancelled), len(failed), cascaded],
        f"the record counts {len(asked)} runs asked for and {cascaded} pages that went along",
    )


def check_again(client: Client, first: Answer, again: Answer, after: Runs) -> None:
    """Check that the second request has changed nothing.

    Raises:
        DemoFailed: It has.
    """
    expect(again.body == first.body, "the answer is the same")
    expect(client.runs() == after, "nothing about any run has changed")
    items = client.list(f"/v1/cancellations/{again.headers['Cancellation-Id']}/items")
    outcomes = Counter(item["outcome"] for item in items)
    expect(
        outcomes["cancelled"] == 0
        and outcomes["already_cancelled"] == len(first.body["cancelled"]),
        'its record says "already cancelled" for each of them',
    )

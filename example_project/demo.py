"""``make demo``: cancel 100 runs in one request over HTTP, and check what came of it.

The database is temporary unless ``DATABASE_URL`` names one. There, the runs stay.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NamedTuple
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

import django
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import DatabaseError, connection

MANAGE = Path(__file__).resolve().parent / "manage.py"
STARTUP_SECONDS = 60
STOP_SECONDS = 5

Runs = dict[str, dict[str, Any]]
"""What the API says of runs, by their ids."""


class DemoFailed(Exception):
    """Something is not as the demo says."""


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


class Answer(NamedTuple):
    """What the server said."""

    status: int
    reason: str
    headers: Any
    body: Any
    milliseconds: float


@dataclass(frozen=True)
class Client:
    """Speaks to the server as any client would."""

    url: str
    key: str

    def call(self, path: str, body: Any = None) -> Answer:
        """Send a request: GET, or POST when there is a body."""
        request = Request(  # noqa: S310 - always http, to the server started here
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"x-api-key": self.key, "Content-Type": "application/json"},
        )
        # A proxy in the environment would not find the server.
        opener = build_opener(ProxyHandler({}))
        start = time.perf_counter()
        try:
            with opener.open(request, timeout=30) as response:
                text = response.read()
        except OSError as error:
            raise DemoFailed(f"{request.get_method()} {path}: {error}") from error
        milliseconds = (time.perf_counter() - start) * 1_000
        return Answer(
            response.status, response.reason, response.headers, json.loads(text), milliseconds
        )

    def list(self, path: str) -> list[dict[str, Any]]:
        """Return all rows of a list, page by page."""
        rows = []
        url: str | None = f"{self.url}{path}?page_size=100"
        while url:
            page = self.call(url.removeprefix(self.url)).body
            rows += page["results"]
            url = page["next"]
        return rows

    def runs(self) -> Runs:
        """Return every run of the key's tenant by its id."""
        return {run["run_id"]: run for run in self.list("/v1/runs")}


def main() -> int:
    """Run the demo and return its exit status."""
    handle_signals(interrupt)
    try:
        with ExitStack() as stack:
            try:
                run_demo(stack)
            finally:
                # Nothing is to interrupt the cleaning up, which takes a few seconds at most.
                handle_signals(signal.SIG_IGN)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (CommandError, DatabaseError, DemoFailed) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    print("\nAll of this holds. What the demo started is stopped.")
    return 0


def handle_signals(handler: Any) -> None:
    """Handle everything that asks for an end in the same way."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Stop what is being done."""
    # Once more in a moment: Python drops an exception that it raises inside a finalizer, of which
    # migrating runs many.
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    raise KeyboardInterrupt


def run_demo(stack: ExitStack) -> None:
    """Prepare everything, show and check a cancellation, and show and check it again.

    Args:
        stack: Takes what has to be undone at the end.

    Raises:
        DemoFailed: An expectation does not hold.
    """
    directory = Path(stack.enter_context(TemporaryDirectory(prefix="run-cancel-demo-")))
    temporary = not os.environ.get("DATABASE_URL")
    if temporary:
        os.environ["DATABASE_URL"] = f"sqlite:///{quote(str(directory / 'demo.sqlite3'))}"
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    django.setup()
    stack.callback(connection.close)
    if connection.settings_dict["NAME"] == ":memory:":
        raise DemoFailed("DATABASE_URL names a database in memory, which no server can share.")

    tenant = f"demo-{secrets.token_hex(4)}"
    heading("Preparing")
    call_command("migrate", verbosity=0)
    print(f"Database  {connection.display_name}{', temporary' if temporary else ''}: migrated")
    groups = seed(tenant)
    print(f"Runs      {sum(len(group.run_ids) for group in groups) - 1}, of tenant {tenant}")
    key = command("create_api_key", "make demo", "--tenant", tenant, "--expires-in", "1h")[-1]
    stack.callback(command, "revoke_api_key", key[:11])
    print(f"Key       {shortened(key)}, revoked at the end")
    client = Client(stack.enter_context(server(directory / "server.log")), key)
    print(f"Server    {client.url}")

    before = client.runs()
    # Mixed, to see that the answer keeps the order.
    asked = sorted(
        (run_id for group in groups if group.requested for run_id in group.run_ids),
        key=lambda run_id: run_id[::-1],
    )
    heading("The request")
    print("POST /v1/runs/cancel")
    print(f"x-api-key: {shortened(key)}")
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


@contextmanager
def server(log: Path) -> Iterator[str]:
    """Start the example's server, and stop it at the end.

    Args:
        log: Where its output goes.

    Yields:
        Its URL.
    """
    # Port 0: the system chooses a free one when the server binds it, and nobody can come between.
    arguments = [sys.executable, str(MANAGE), "runserver", "--noreload", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603 - nothing in it comes from outside
            arguments, env=environment, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield wait_for_url(process, log)
        except DemoFailed:
            print(f"\nLog of the server:\n{log.read_text()}", file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server listens, and return its URL.

    Raises:
        DemoFailed: It has ended, or says nothing for too long.
    """
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        if process.poll() is not None:
            raise DemoFailed(f"The server ended with status {process.returncode}.")
        time.sleep(0.05)
    raise DemoFailed(f"The server did not start within {STARTUP_SECONDS} seconds.")


def heading(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def shortened(text: str) -> str:
    """Return the start of a key."""
    return f"{text[:11]}..."


def abridged(run_ids: Sequence[str]) -> str:
    """Return a JSON list of ids, as much of it as fits into a line."""
    if len(run_ids) == 1:
        return json.dumps(run_ids)
    return f'["{run_ids[0]}", ... {len(run_ids) - 1} more]'


def show_answer(answer: Answer) -> None:
    """Print an answer."""
    print(f"{answer.status} {answer.reason} in {answer.milliseconds:.0f} ms")
    print(f"Cancellation-Id: {answer.headers['Cancellation-Id']}")
    for name in ("cancelled", "failed"):
        run_ids = answer.body[name]
        print(f"{name:<9} {len(run_ids):>3}  {abridged(run_ids)}")


def show_table(groups: list[Group], before: Runs, after: Runs) -> None:
    """Print what became of each group."""
    row = "{:>5}  {:<18} {:<12} {:<12} {}".format
    print(row("runs", "which", "before", "after", "work"))

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
    print("\nThe request did not name the pages: they went with their workflow. Work that is")
    print("stopping had begun, and whatever does it has yet to be told or to answer.")


def expect(condition: bool, claim: str) -> None:
    """Print a claim that holds.

    Raises:
        DemoFailed: It does not.
    """
    if not condition:
        raise DemoFailed(f"This does not hold: {claim}")
    print(f"ok  {claim}", flush=True)


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


if __name__ == "__main__":
    sys.exit(main())

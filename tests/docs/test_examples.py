"""The examples of the documentation are run, and do what their pages say."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from itertools import repeat
from threading import Timer
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.test import Client

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.integrations.tracking import TaskMessage, record_published
from django_run_cancel.models import ApiKey, get_run_model
from django_run_cancel.states import RunStatus, StopState
from tests.docs.helpers import TEXT, blocks, is_file
from tests.execution.helpers import cancel, elsewhere
from tests.helpers import ApiClient, make_run


def hide_ids(text: str) -> str:
    return re.sub(r"\b([a-z]+_)[0-9a-f]{32}\b", r"\1…", text)


def run_page(name: str) -> tuple[dict[str, Any], str, str]:
    """Run the blocks of a page one after another.

    Returns:
        The names they defined, what they printed, and what the page says that they print.
    """
    found = re.findall(r"^```(python|text)\n(.*?)^```$", TEXT[name], flags=re.S | re.M)
    namespace: dict[str, Any] = {"__name__": "docs"}
    printed, expected = io.StringIO(), ""
    previous = ""
    for language, block in found:
        if language == "python" and not is_file(block):
            with redirect_stdout(printed):
                exec(compile(block, name, "exec"), namespace)
        elif language == "text" and previous == "python":
            expected += block
        previous = language
    return namespace, hide_ids(printed.getvalue()), hide_ids(expected)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "page",
    [
        "from-scratch.md",
        "howto/runs.md",
        "howto/operators.md",
        "howto/transactions.md",
        "howto/access.md",
        "howto/retention.md",
        "howto/many-runs.md",
        "howto/worker.md",
        "howto/delivery-worker.md",
    ],
)
def test_page_does_what_it_says(page: str) -> None:
    _, printed, expected = run_page(page)
    assert printed == expected


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("watched")
def test_the_examples_stop() -> None:
    page, _, _ = run_page("howto/worker.md")
    ends = {
        "crawl": lambda run_id: page["crawl"](run_id, repeat("/")),
        "acrawl": lambda run_id: async_to_sync(page["acrawl"])(run_id, repeat("/")),
        "convert": lambda run_id: page["convert"](run_id, ["sleep", "60"]),
    }
    for name, work in ends.items():
        run = make_run()
        Timer(0.2, elsewhere, [cancel, run]).start()
        with suppress(RunCancelled), redirect_stdout(io.StringIO()):
            work(run.run_id)
        run.refresh_from_db()
        assert run.stop_state == StopState.ACKNOWLEDGED, name


@pytest.mark.django_db
def test_the_example_is_tried_again() -> None:
    page, _, _ = run_page("howto/worker.md")
    run, downloads = make_run(), iter([ConnectionError])

    def download() -> None:
        for error in downloads:
            raise error

    with pytest.raises(ConnectionError):
        page["fetch"](run.run_id, download)
    page["fetch"](run.run_id, download)
    run.refresh_from_db()
    assert run.status == RunStatus.COMPLETED


@pytest.mark.django_db(transaction=True)
def test_tests_of_hosts(settings: Any) -> None:
    settings.RUN_CANCEL_BACKENDS = {"celery": {"BACKEND": "django_run_cancel.testing.DummyBackend"}}
    page, _, _ = run_page("howto/testing.md")
    page["test_import_stops_between_two_pages"]()
    page["test_the_executor_is_told"](None)
    run = make_run("completed", stop_state=StopState.ACKNOWLEDGED)
    page["wait_for_end"](run)


@pytest.fixture
def teams(settings: Any) -> Iterator[None]:
    """Set the project up as the example of RUN_CANCEL_SCOPE says."""
    files = [block for block in blocks(TEXT["howto/access.md"]) if is_file(block)]
    by_name = {block.split("\n")[0].removeprefix("# "): block for block in files}
    module = ModuleType("teams")
    exec(compile(by_name["teams.py"], "teams.py", "exec"), vars(module))
    values: dict[str, Any] = {}
    exec(compile(by_name["settings.py"], "settings.py", "exec"), values)
    settings.RUN_CANCEL_SCOPE = values["RUN_CANCEL_SCOPE"]
    sys.modules["teams"] = module
    yield
    del sys.modules["teams"]


@pytest.mark.django_db
@pytest.mark.usefixtures("teams")
class TestScopeExample:
    def member(self, *tenants: str, **fields: Any) -> Client:
        user = get_user_model().objects.create_user(f"member of {tenants}{fields}", **fields)
        user.user_permissions.add(Permission.objects.get(codename="cancel_run"))
        for tenant in tenants:
            user.groups.add(Group.objects.get_or_create(name=tenant)[0])
        client = ApiClient()
        client.force_login(user)
        return client

    def seen(self, client: Client) -> list[str]:
        results = json.loads(client.get("/v1/runs").content)["results"]
        return sorted(run["title"] for run in results)

    def test_who_sees_what(self) -> None:
        for tenant in ("acme", "globex", "initech"):
            make_run(tenant=tenant, title=tenant)
        assert self.seen(self.member("acme", "globex")) == ["acme", "globex"]
        assert self.seen(self.member()) == []
        assert self.seen(self.member(is_superuser=True)) == ["acme", "globex", "initech"]
        assert self.seen(ApiClient(ApiKey.issue("k", tenant="acme")[1])) == ["acme"]

    def test_out_of_scope_does_not_exist(self) -> None:
        ours, theirs = make_run(tenant="acme"), make_run(tenant="globex")
        child = ours.create_child()
        type(ours)._default_manager.filter(pk=child.pk).update(tenant="globex")
        client = self.member("acme")
        answer = client.cancel([ours.run_id, theirs.run_id])  # type: ignore[attr-defined]
        assert json.loads(answer.content) == {"cancelled": [ours.run_id], "failed": [theirs.run_id]}
        assert client.get(f"/v1/runs/{theirs.run_id}").status_code == 404
        child.refresh_from_db()
        assert child.status == "cancelled"

    def test_each_sees_their_own_requests(self) -> None:
        run = make_run(tenant="acme")
        mine, colleague = self.member("acme"), self.member("acme", "globex")
        record = mine.cancel([run.run_id])["Cancellation-Id"]  # type: ignore[attr-defined]
        key = ApiClient(ApiKey.issue("k", tenant="acme")[1])
        for client, expected in ((mine, [record]), (colleague, []), (key, [])):
            results = json.loads(client.get("/v1/cancellations").content)["results"]
            assert [row["cancellation_id"] for row in results] == expected
        shown = json.loads(colleague.get(f"/v1/runs/{run.run_id}").content)
        assert shown["cancellation_id"] == record
        assert colleague.get(f"/v1/cancellations/{record}").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_the_example_describes_tasks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (each for each in blocks(TEXT["howto/adopt.md"]) if "def describe" in each)
    module = ModuleType("described")
    exec(compile(block, "adopt.md", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "described", module)
    settings.RUN_CANCEL_DESCRIBE = "described.describe"
    crawl = TaskMessage("1", "crawls.tasks.crawl", kwargs={"customer": "acme", "pages": 3})
    record_published(crawl)
    record_published(TaskMessage("2", "crawls.tasks.crawl", args=("globex",)))
    record_published(TaskMessage("3", "crawls.tasks.other"))
    rows = get_run_model()._default_manager.order_by("pk")
    assert list(rows.values_list("tenant", "title", "metadata")) == [
        ("acme", "Crawl for acme", {"pages": 3}),
        ("globex", "Crawl for globex", {"pages": 10}),
        ("", "crawls.tasks.other", {}),
    ]

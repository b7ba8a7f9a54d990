"""The documentation says what there is, and nothing else; its examples are run."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from itertools import repeat
from pathlib import Path
from threading import Timer
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand
from django.dispatch import Signal
from django.test import Client
from django.urls import URLPattern

import django_run_cancel
from django_run_cancel import admin, backends, checks, signals
from django_run_cancel.api import bulk_serializers, schema, serializers, urls
from django_run_cancel.api.exceptions import LengthRequired
from django_run_cancel.api.fields import MAX_IDS_PER_REQUEST
from django_run_cancel.cancellation import arguments, cancel_runs
from django_run_cancel.conf import RunCancelSettings
from django_run_cancel.conf import settings as run_cancel_settings
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.integrations.tracking import TaskMessage, record_published
from django_run_cancel.models import ApiKey, database_checks, get_run_model
from django_run_cancel.models.runs import STATE_FIELDS
from django_run_cancel.states import ACTIVE, SOURCES, RunStatus, StopState
from tests.execution.helpers import cancel, elsewhere
from tests.helpers import ApiClient, make_run
from tools import diagrams

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXT = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in PAGES}
OUTSIDE = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
EVERYTHING = "\n".join([*TEXT.values(), *(path.read_text("utf-8") for path in OUTSIDE)])

HTTP = TEXT["reference/http.md"]

Capture = Callable[..., Any]


def headings(text: str) -> list[str]:
    """Return the headings of the second level, and nothing of code blocks."""
    return re.findall(r"^## (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)


def named(text: str) -> list[str]:
    """Return the headings that are code."""
    return [heading.strip("`") for heading in headings(text) if heading.startswith("`")]


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of tables."""
    lines = re.findall(r"^\|(.+)\|$", text, flags=re.M)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in cells if row[0] and not row[0].startswith("-")]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def first_column(text: str) -> list[str]:
    """Return what is code in the first column of tables."""
    return [code for row in rows(text) for code in codes(row[0])]


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.S | re.M)


def is_file(block: str) -> bool:
    """Tell whether a block is a file to write, rather than something to run."""
    return re.match(r"# [\w/]+\.py(, at the end)?\n", block) is not None


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


def sources(package: ModuleType) -> Iterator[ast.AST]:
    """Yield the nodes of the source of a module, or of all modules of a package."""
    path = Path(inspect.getfile(package))
    for file in sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]:
        yield from ast.walk(ast.parse(file.read_text("utf-8")))


class TestSettings:
    page = TEXT["reference/settings.md"]

    def test_all_and_only_these(self) -> None:
        assert sorted(named(self.page)) == sorted(run_cancel_settings.names())
        assert set(re.findall(r"\bRUN_CANCEL_[A-Z_]*[A-Z]\b", EVERYTHING)) == set(named(self.page))

    @pytest.mark.parametrize("name", run_cancel_settings.names())
    def test_default(self, name: str) -> None:
        text = section(self.page, f"`{name}`")
        default = re.search(r"^Default: `(.+)`$", text, flags=re.M)
        assert default is not None
        expected = vars(RunCancelSettings)[name.removeprefix("RUN_CANCEL_")]
        assert ast.literal_eval(default[1]) == expected


def test_checks() -> None:
    pattern = r"django_run_cancel\.[A-Z]\d{3}"
    nodes = (
        node for package in (checks, database_checks, backends, admin) for node in sources(package)
    )
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    ids = {text for text in strings if isinstance(text, str) and re.fullmatch(pattern, text)}
    documented = [row[0].strip("`") for row in rows(TEXT["reference/checks.md"])[1:]]
    assert documented == sorted(ids)
    assert set(re.findall(pattern, EVERYTHING)) <= ids


class TestSignals:
    page = TEXT["reference/signals.md"]

    def test_all_and_only_these(self) -> None:
        existing = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
        assert set(named(self.page)) == existing

    @pytest.mark.django_db
    @pytest.mark.parametrize("name", named(TEXT["reference/signals.md"]))
    def test_arguments(self, name: str, django_capture_on_commit_callbacks: Capture) -> None:
        received = []

        def receive(**arguments: Any) -> None:
            received.append(arguments)

        signal: Signal = getattr(signals, name)
        signal.connect(receive)
        try:
            with django_capture_on_commit_callbacks(execute=True):
                cancel_runs([make_run().run_id], requested_by="tests")
        finally:
            signal.disconnect(receive)
        (arguments,) = received
        assert first_column(section(self.page, f"`{name}`")) == [
            argument
            for argument in ("sender", "run_id", "run_ids", "cancellation_id", "stop_state")
            if argument in arguments
        ]
        assert set(arguments) - {"signal"} == set(first_column(section(self.page, f"`{name}`")))


def endpoints() -> set[str]:
    found = set()
    for pattern in urls.urlpatterns:
        assert isinstance(pattern, URLPattern)
        route = re.sub(r"<\w+:(\w+)>", r"{\1}", str(pattern.pattern)).rstrip("/")
        view = pattern.callback.cls  # type: ignore[attr-defined]
        for method in ("get", "post", "put", "patch", "delete"):
            if hasattr(view, method):
                found.add(f"{method.upper()} /v1/{route}")
    return found


class TestHttp:
    def test_endpoints(self) -> None:
        assert set(named(HTTP)) == endpoints()
        mentioned = set(re.findall(r"(?:GET|POST|PUT|PATCH|DELETE) /[\w/{}.]*[\w}]", EVERYTHING))
        assert mentioned <= endpoints()

    def test_parameters(self) -> None:
        for path, methods in document()["paths"].items():
            for method, operation in methods.items():
                text = section(HTTP, f"`{method.upper()} {path}`")
                if "as above" in text:
                    assert {"page_size", "cursor"} <= set(codes(text)) or method == "post"
                    continue
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "query":
                        assert parameter["name"] in first_column(text), path

    def test_no_other_parameters(self) -> None:
        table = section(HTTP, "`GET /v1/runs`").split("The answer has")[0]
        assert set(first_column(table)) == self.run_parameters()

    @pytest.mark.parametrize(
        ("heading", "serializer"),
        [
            ("GET /v1/runs", serializers.CancellableRunSerializer),
            ("GET /v1/cancellations", serializers.RunCancellationSerializer),
            (
                "GET /v1/cancellations/{cancellation_id}/items",
                serializers.RunCancellationItemSerializer,
            ),
        ],
    )
    def test_fields(self, heading: str, serializer: Any) -> None:
        table = section(HTTP, f"`{heading}`").rsplit("| Field |", 1)[1]
        assert first_column(table) == list(serializer().fields)

    def test_bodies(self) -> None:
        for heading, names in {
            "POST /v1/runs/cancel": [
                *serializers.BulkCancelRunsBodySerializer().fields,
                *serializers.BulkCancelRunsResponseSerializer().fields,
                "Idempotency-Key",
                "Cancellation-Id",
            ],
            "POST /v1/runs/{run_id}/cancel": [*serializers.CancelRunRequestSerializer().fields],
            "POST /v1/cancellations": [
                *bulk_serializers.BulkCancellationRequestSerializer().fields,
                *bulk_serializers.RunSelectionSerializer().fields,
                "Idempotency-Key",
                "Location",
                "Cancellation-Id",
                *bulk_serializers.BulkCancellationPreviewSerializer().fields,
            ],
        }.items():
            assert first_column(section(HTTP, f"`{heading}`")) == names

    def test_error_statuses(self) -> None:
        table = section(HTTP, "Errors").split("422 lists")[0]
        documented = {int(row[0]) for row in rows(table)[1:]}
        operations = [
            operation for methods in document()["paths"].values() for operation in methods.values()
        ]
        declared = {int(status) for operation in operations for status in operation["responses"]}
        assert documented == declared - {200, 202} | {405, LengthRequired.status_code}

    @pytest.mark.django_db
    def test_error_places(self, api: ApiClient) -> None:
        cancel, single, bulk = "/v1/runs/cancel", "/v1/runs/x/cancel", "/v1/cancellations"
        items = f"{bulk}/{api.cancel(['x'], idempotency_key='used')['Cancellation-Id']}/items"
        answers: list[Any] = [
            api.send(cancel, ""),
            api.send(cancel, {}),
            api.send(cancel, "{"),
            api.send(cancel, []),
            api.cancel("x"),
            api.cancel(["x"] * 101),
            api.cancel(["x", 1]),
            api.send(single, {"force": 1}),
            api.send(single, {"reason": 1}),
            api.send(single, {"reason": "\0"}),
            api.cancel(["x"], idempotency_key=""),
            api.cancel(["y"], idempotency_key="used"),
            api.get("/v1/runs", {"cursor": "zz"}),
            *(api.get(items, {name: "zz"}) for name in ("outcome", "stop_state")),
            *(api.send(bulk, body) for body in ({}, {"name": 1}, {"run_ids": [], "dry_run": 1})),
            *(
                api.send(bulk, {"filter": each})
                for each in (
                    *(None, [], {}, {"name": 1}, {"type": 1}, {"type": "\0"}, {"status": 1}),
                    *({"created_after": 1}, {"metadata": {}}, {"metadata": {"key": {}}}),
                )
            ),
            *(
                api.get("/v1/runs", {name: "\0"})
                for name in sorted(self.run_parameters() - {"cursor"})
            ),
        ]
        seen: dict[str, set[str]] = {}
        for answer in answers:
            assert answer.status_code == 422, answer.content
            for entry in json.loads(answer.content)["detail"]:
                loc = re.sub(r"\d+", "#", json.dumps(entry["loc"]))
                loc = re.sub(r'"filter", "(?!metadata", )\w+"', '"filter", name', loc)
                loc = re.sub(r'"(name|key)"', r"\1", loc)
                seen.setdefault(entry["type"], set()).add(loc)
        assert seen == self.error_table()

    def error_table(self) -> dict[str, set[str]]:
        table = rows(section(HTTP, "Errors").split("| `type` |")[1])
        return {
            codes(row[0])[0]: {re.sub("index|position", "#", loc) for loc in codes(row[1])}
            for row in table
            if row[0].startswith("`")
        }

    def run_parameters(self) -> set[str]:
        operation = document()["paths"]["/v1/runs"]["get"]
        return {parameter["name"] for parameter in operation["parameters"]}


@cache
def document() -> Any:
    return schema.generate_document()


class TestCommands:
    page = TEXT["reference/commands.md"]

    def test_all_and_only_these(self) -> None:
        folder = Path(inspect.getfile(django_run_cancel)).parent / "management" / "commands"
        existing = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert set(named(self.page)) == existing
        mentioned = set(re.findall(r"manage\.py (\w+)", "\n".join(TEXT.values())))
        of_executors = {
            "run_huey",
            "db_worker",
            "procrastinate",
        }  # in hosts that have installed them as apps
        assert mentioned - of_executors <= set(get_commands())

    @pytest.mark.parametrize("name", named(TEXT["reference/commands.md"]))
    def test_arguments(self, name: str) -> None:
        command = load_command_class("django_run_cancel", name)
        parser = ArgumentParser(add_help=False)
        command.add_arguments(parser)  # type: ignore[arg-type]
        assert isinstance(command, BaseCommand)
        existing = [
            action.option_strings[0] if action.option_strings else action.dest
            for action in parser._actions
        ]
        text = section(self.page, f"`{name}`")
        assert first_column(text) == existing
        for option in re.findall(r"--[\w-]+", "\n".join(blocks(text, "console"))):
            assert option in existing

    def test_options_elsewhere(self) -> None:
        options = re.findall(r"create_api_key[^\n]*? (--[\w-]+)", "\n".join(TEXT.values()))
        assert set(options) <= set(first_column(self.page))


class TestStates:
    page = TEXT["explanation.md"]

    def test_transitions(self) -> None:
        table = rows(section(self.page, "Statuses"))[1:]
        assert [codes(row[0])[0] for row in table] == list(RunStatus)
        for status, kind, entered, how in table:
            name = RunStatus(status.strip("`"))
            assert kind == ("active" if name in ACTIVE else "terminal")
            assert set(codes(entered)) == SOURCES[name]
            methods = {code.strip("()") for code in codes(how)}
            assert all(hasattr(get_run_model(), method) for method in methods if "mark_" in method)
            if name not in {RunStatus.CREATED, RunStatus.CANCELLED}:
                assert methods == {f"mark_{name}"}

    def test_stop_states(self) -> None:
        table = rows(section(self.page, "Evidence"))
        assert [codes(row[0])[0] for row in table if row[0][0] == "`"][1:] == [
            StopState.NEVER_STARTED,
            StopState.STOPPING,
            StopState.ACKNOWLEDGED,
            StopState.KILLED,
            StopState.PRESUMED,
        ]

    def test_fields_that_save_leaves_out(self) -> None:
        text = section(TEXT["howto/runs.md"], "What `save()` does not write")
        assert set(codes(text.split(". ")[0])) - {"save()"} == STATE_FIELDS


def test_limits() -> None:
    http, python = HTTP, TEXT["explanation.md"]
    assert f"0 to {MAX_IDS_PER_REQUEST}" in http
    assert f"up to {arguments.MAX_REASON_LENGTH:,} characters" in http
    assert f"1 to {arguments.MAX_LABEL_LENGTH} characters" in http
    assert f"{arguments.MAX_RUN_IDS:,} per call" in python


def test_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for name in ("Python", "Django"):
        versions = [
            text.rsplit(" ", 1)[1]
            for text in project["classifiers"]
            if re.search(rf":: {name} :: \d+\.\d+$", text)
        ]
        assert f"{name} {versions[0]} to {versions[-1]}" in TEXT["index.md"]


class TestPython:
    def test_names_exist(self) -> None:
        for name in set(re.findall(r"\bdjango_run_cancel(?:\.\w+)+", "\n".join(TEXT.values()))):
            if not re.search(r"\.[A-Z]\d{3}$", name):
                assert exists(name), name

    def test_members_exist(self) -> None:
        text = TEXT["reference/python.md"]
        pattern = r"^\.\. auto\w+:: (\S+)\n   :members: (.+(?:\n {4,}.+)*)"
        found = re.findall(pattern, text, flags=re.M)
        assert found
        for name, members in found:
            for member in members.replace("\n", " ").split(","):
                assert exists(f"{name}.{member.strip()}"), (name, member)

    def test_signals_and_exceptions_are_there(self) -> None:
        text = TEXT["reference/python.md"]
        assert ".. automodule:: django_run_cancel.exceptions" in text
        assert "](signals.md)" in text

    @pytest.mark.parametrize(
        ("page", "block"),
        [
            pytest.param(page, block, id=f"{page}-{number}")
            for page, text in TEXT.items()
            for number, block in enumerate(blocks(text))
        ],
    )
    def test_blocks_compile_and_import_what_exists(self, page: str, block: str) -> None:
        for node in ast.walk(ast.parse(block, page)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module.startswith("django_run_cancel"):
                    for alias in node.names:
                        assert exists(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "include":
                import_module(ast.literal_eval(node.args[0]))


def exists(dotted: str) -> bool:
    """Tell whether a dotted name is a module, something in one, a model or a permission."""
    label, _, name = dotted.partition(".")
    if name in {model.__name__ for model in apps.get_app_config(label).get_models()} | {"Run"}:
        return True
    if name in {"cancel_run", "force_cancel_run", "view_run"}:
        return True
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


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


def test_diagrams_are_those_of_their_program() -> None:
    for parts in diagrams.DRAWINGS:
        stored = (diagrams.IMAGES / f"{parts.__name__}.svg").read_text("utf-8")
        assert stored == diagrams.drawn(parts), "run: make diagrams"


def test_executors_are_compared_without_empty_cells() -> None:
    table = rows(TEXT["howto/executors.md"])
    assert all(len(row) == len(table[0]) and all(row) for row in table)
    pages = {page.split("/")[-1] for page in TEXT if page.startswith("howto/backends/")}
    assert pages == set(re.findall(r"\(backends/([\w-]+\.md)\)", TEXT["howto/executors.md"]))


def test_changelog_is_included() -> None:
    (included,) = re.findall(r"```\{include\} (\S+)", TEXT["changelog.md"])
    assert (DOCS / included).resolve().is_file()


def test_nothing_of_this_version_is_missing_from_the_promises() -> None:
    """The page that promises says plainly what this version does not do."""
    assert "does not stop code without checkpoints by itself" in " ".join(
        TEXT["explanation.md"].replace("*", "").split()
    )

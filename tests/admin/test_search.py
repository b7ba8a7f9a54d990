"""The search in the lists: what it finds, in how many rows, and through which index."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_run_cancel.admin import search
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import Cancellation, get_run_model
from tests.admin.helpers import LIST, RECORDS, RUN, logged_in, tick, words
from tests.helpers import IS_POSTGRESQL, ids, make_run, make_runs

pytestmark = pytest.mark.django_db

SENTENCE = "rows of this list were these searched:"


@pytest.fixture
def operator() -> Client:
    return logged_in("operator", "view_run", "view_job", "cancel_run", "view_cancellation")


def found(client: Client, term: str, **filters: str) -> set[str]:
    page = client.get(LIST, {"q": term, **filters})
    return set(ids(page.context["cl"].result_list))


def records(client: Client, term: str) -> set[str]:
    page = client.get(RECORDS, {"q": term})
    return {row.reason for row in page.context["cl"].result_list}


def test_runs(operator: Client) -> None:
    harbour = make_run(title="Nightly import of the Harbour library", run_id="job-1")
    city = make_run(title="Import, 100% of the City", run_id="job-2", external_id="7f3a-B")
    named = make_run(run_id="import-3")
    assert found(operator, "harbour IMPORT") == {"job-1"}
    assert found(operator, "100%") == {"job-2"}
    assert found(operator, "import") == set(ids([harbour, city, named]))
    assert found(operator, "job-") == {"job-1", "job-2"}
    assert found(operator, "JOB-") == set()
    assert found(operator, "7f3a") == {"job-2"}
    assert found(operator, "7F3A") == set()
    assert found(operator, "3a-B") == set()
    assert found(operator, "  ") == set(ids([harbour, city, named]))
    assert found(operator, "import", tenant="acme") == set()


def test_each_word_counts_however_many_there_are(operator: Client) -> None:
    make_run(title="a b c d e f g h i j k l", run_id="job-1")
    assert found(operator, "l k j i h g f e d") == {"job-1"}
    assert found(operator, "b c d e f g h i j a") == {"job-1"}
    assert found(operator, "b c d e f g h i a j k") == {"job-1"}
    assert found(operator, "b c d e f g h i a j x") == set()


def test_cancellations(operator: Client) -> None:
    disk, ticket = make_runs(2)
    cancel_runs([disk.run_id], requested_by="CI (rc_abc)", reason="Disk full")
    cancel_runs([ticket.run_id], requested_by="night.watch", reason="See the ticket on disks")
    record = Cancellation.objects.get(reason="Disk full")
    assert records(operator, "FULL disk") == {"Disk full"}
    assert records(operator, "disk") == {"Disk full", "See the ticket on disks"}
    assert records(operator, "watch") == {"See the ticket on disks"}
    assert records(operator, "rc_abc") == {"Disk full"}
    assert records(operator, record.cancellation_id[:-1]) == {"Disk full"}
    assert records(operator, record.cancellation_id.upper()) == set()
    assert records(operator, ticket.run_id) == {"See the ticket on disks"}
    assert records(operator, ticket.run_id[:-1]) == set()


class TestBound:
    """Without an index, the newest rows of those that the filters leave are searched."""

    @pytest.fixture(autouse=True)
    def low_bound(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(search, "MAX_COUNTED", 3)

    def test_old_runs_are_left_out_and_that_is_said(self, operator: Client) -> None:
        old = make_run(title="Import", tenant="acme", run_id="old", external_id="e1")
        new = make_runs(3, title="Import")
        for _ in range(2):
            page = operator.get(LIST, {"q": "import"})
            assert ids(page.context["cl"].result_list) == ids(new)[::-1]
            assert f"Only in the newest 3 {SENTENCE} external id, title." in words(page)
        assert found(operator, "e1") == set()
        assert found(operator, "old") == {old.run_id}
        page = operator.get(LIST, {"q": "import", "tenant": "acme"})
        assert ids(page.context["cl"].result_list) == ["old"]
        assert SENTENCE not in words(page)

    def test_nothing_is_said_when_nothing_is_left_out(self, operator: Client) -> None:
        make_runs(3, title="Import")
        assert SENTENCE not in words(operator.get(LIST, {"q": "import"}))
        make_run()
        assert SENTENCE not in words(operator.get(LIST))

    def test_runs_of_the_same_moment(self, operator: Client) -> None:
        runs = make_runs(5, title="Import", created_at="2026-01-01T00:00Z")
        newest = sorted(runs, key=lambda run: run.pk)[-3:]
        assert found(operator, "import") == set(ids(newest))
        assert found(operator, "import", o="4") == set(ids(newest))

    def test_an_action_on_all_sees_what_the_list_shows(self, operator: Client) -> None:
        new = make_runs(3, title="Import")
        page = tick(operator, new[:1], "?q=import", select_across="1")
        text = words(operator.get(page["Location"]))
        assert all(run.run_id in text for run in new)

    def test_an_action_on_all_is_refused_where_not_all_were_searched(
        self, operator: Client
    ) -> None:
        """At another time the newest rows are others."""
        runs = make_runs(4, title="Import")
        page = tick(operator, runs[:1], "?q=import", select_across="1")
        shown = operator.get(page["Location"], follow=True)
        assert "The search has looked at the newest runs only" in words(shown)

    def test_cancellations(self, operator: Client) -> None:
        for number in range(4):
            cancel_runs(ids([make_run()]), requested_by="ada", reason=f"Disk {number}")
        assert records(operator, "disk") == {"Disk 1", "Disk 2", "Disk 3"}
        page = operator.get(RECORDS, {"q": "ada"})
        assert f"Only in the newest 3 {SENTENCE} requested by, reason." in words(page)


@pytest.mark.skipif(IS_POSTGRESQL, reason="has these indexes")
def test_command__other_databases() -> None:
    with pytest.raises(CommandError, match="These indexes need PostgreSQL"):
        call_command("create_search_indexes")


@pytest.mark.skipif(not IS_POSTGRESQL, reason="the others have no such indexes")
@pytest.mark.django_db(transaction=True)
class TestIndexes:
    @pytest.fixture(autouse=True)
    def clean(self) -> Iterator[None]:
        yield
        with connection.cursor() as cursor:
            cursor.execute("DROP EXTENSION IF EXISTS pg_trgm CASCADE")
            cursor.execute(
                "SELECT format('%%I', indexname) FROM pg_indexes WHERE indexname ~ %s", ["_prefix$"]
            )
            for (name,) in cursor.fetchall():
                cursor.execute(f"DROP INDEX {name}")

    def command(self, **options: Any) -> str:
        out = io.StringIO()
        call_command("create_search_indexes", stdout=out, **options)
        return out.getvalue()

    def test_old_rows_are_found_through_the_indexes(
        self, operator: Client, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(search, "MAX_COUNTED", 3)
        make_run(title="Rarely imported", run_id="old", external_id="7f3a")
        many = [
            get_run_model()(title=f"Crawl {number}", external_id=f"x{number}")
            for number in range(5_000)
        ]
        get_run_model()._base_manager.bulk_create(many)
        cancel_runs(["old"], requested_by="Ada Lovelace", reason="Disk full")
        for number in range(4):
            cancel_runs([f"unknown-{number}"], requested_by="x", reason="y")
        self.command()
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {RUN.db_table}")
        for term in ("RARELY", "7f3a"):
            with CaptureQueriesContext(connection) as captured:
                page = operator.get(LIST, {"q": term})
            assert ids(page.context["cl"].result_list) == ["old"]
            assert SENTENCE not in words(page)
            listed = next(
                entry["sql"]
                for entry in captured
                if "ORDER BY" in entry["sql"] and f'"{RUN.db_table}"' in entry["sql"]
            )
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {listed}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
            assert "Seq Scan on " + RUN.db_table not in plan, plan
        assert records(operator, "lovelace") == {"Disk full"}
        assert records(operator, "disk") == {"Disk full"}
        # No trigram.
        assert found(operator, "ly") == set()
        assert f"{SENTENCE} title." in words(operator.get(LIST, {"q": "ly"}))

    def test_command(self) -> None:
        planned = self.command(dry_run=True)
        assert planned.startswith("CREATE EXTENSION IF NOT EXISTS pg_trgm;")
        assert planned.count("CREATE INDEX CONCURRENTLY") == 4
        assert self.command() == planned
        assert self.command() == "All search indexes exist.\n"

    def test_command__refused(self) -> None:
        name = f'"{RUN.db_table[:40]}_title_words"'
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {name} ()")
        with pytest.raises(CommandError, match="is not an index"):
            self.command()
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {name}")

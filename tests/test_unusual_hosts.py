"""Hosts that do what Django allows: replicas, subclasses, hidden rows, foreign keys to runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection, models, transaction
from django.test.utils import CaptureQueriesContext, isolate_apps

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.filters import filter_runs
from django_run_cancel.db.statements import names_of
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.models import AbstractRun, ApiKey, Run, get_run_model
from django_run_cancel.states import RunStatus
from tests.helpers import IS_POSTGRESQL, ApiClient, ids, make_run, make_runs, statuses


class ReadsGoToAReplica:
    """Routes reads to an alias that cannot be reached, so that each one is noticed."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: type[models.Model], **hints: Any) -> str:
        return "default"

    def allow_relation(self, *args: Any, **hints: Any) -> bool:
        return True


@pytest.fixture
def replica(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [ReadsGoToAReplica()]


@pytest.mark.django_db
class TestReplica:
    def test_transitions_and_children_go_to_the_primary(self, replica: None) -> None:
        run = make_run()
        run._state.db = "replica"
        run.mark_running()
        assert run.status == RunStatus.RUNNING
        run._state.db = "replica"
        child = run.create_child()
        assert child._state.db == "default"

    def test_cancelling_reads_nothing_from_it(self, replica: None) -> None:
        run = make_run()
        first = cancel_runs([run.run_id], requested_by="x", idempotency_key="k")
        again = cancel_runs([run.run_id], requested_by="x", idempotency_key="k")
        assert again == first
        assert again.cancelled == [run.run_id]

    def test_keys_and_a_single_cancellation(self, api: ApiClient, replica: None) -> None:
        run = make_run()
        answer = api.send(f"/v1/runs/{run.run_id}/cancel", "")
        assert answer.json()["status"] == "cancelled"
        row, key = ApiKey.issue("CI")
        row.revoke()
        assert ApiKey.authenticate(key) is None


def with_its_table(model: type[models.Model]) -> Iterator[type[Any]]:
    with connection.schema_editor() as editor:
        editor.create_model(model)
    yield model
    with connection.schema_editor() as editor:
        editor.delete_model(model)


@pytest.mark.django_db(transaction=True)
class TestSubclassWithATableOfItsOwn:
    @pytest.fixture
    def crawl(self) -> Iterator[type[Any]]:
        with isolate_apps("tests"):

            class Crawl(get_run_model()):  # type: ignore[misc]
                pages = models.IntegerField(default=0)

                class Meta:
                    app_label = "tests"

            yield from with_its_table(Crawl)

    def test_transition_is_one_compare_and_set(self, crawl: type[Any]) -> None:
        run = crawl.objects.create(status="queued")
        with CaptureQueriesContext(
            connection,
        ) as queries:
            run.mark_running()
        (update,) = (query["sql"] for query in queries if query["sql"].startswith("UPDATE"))
        assert "status" in update.split("WHERE")[1]
        cancel_runs([run.run_id], requested_by="x")
        with pytest.raises(TransitionNotAllowed):
            run.mark_completed()

    def test_children_and_scope(self, crawl: type[Any]) -> None:
        run = crawl.objects.create(status="running")
        child = run.create_child(pages=3)
        assert (type(child), child.pages, child.parent.pk) == (crawl, 3, run.pk)
        result = cancel_runs([run.run_id], runs=crawl.objects.all(), requested_by="x")
        assert result.cancelled == [run.run_id]
        assert statuses(run, child) == ["cancelled", "cancelled"]

    def test_copy_does_not_overwrite(self, crawl: type[Any]) -> None:
        run = make_run()
        cancel_runs([run.run_id], requested_by="x")
        copy = crawl(pk=run.pk, run_id=run.run_id)
        with pytest.raises(IntegrityError), transaction.atomic():
            copy.save()
        assert statuses(run) == ["cancelled"]


@pytest.mark.django_db(transaction=True)
class TestSubclassWithAKeyOfItsOwn:
    @pytest.fixture
    def crawl(self) -> Iterator[type[Any]]:
        model = get_run_model()
        with isolate_apps("tests"):

            class Crawl(model):  # type: ignore[misc,valid-type]
                number = type(model._meta.pk)(primary_key=True)
                base = models.OneToOneField(model, models.CASCADE, parent_link=True)

                class Meta:
                    app_label = "tests"

            yield from with_its_table(Crawl)

    def test_moves_its_own_run(self, crawl: type[Any]) -> None:
        other = make_run()
        run = crawl.objects.create(number=other.pk, status="queued")
        run.mark_running()
        assert statuses(run, other) == ["running", "queued"]
        assert run.create_child(number=make_run().pk).parent_id == run.base_id
        cancel_runs([run.run_id], requested_by="x")
        with pytest.raises(RunCancelled):
            run.create_child()
        assert statuses(other) == ["queued"]

    def test_scope(self, crawl: type[Any]) -> None:
        """The key of its own may be that of another run."""
        other = make_run()
        run = crawl.objects.create(number=other.pk, status="queued")
        result = cancel_runs(ids([run, other]), runs=crawl.objects.all(), requested_by="x")
        assert (result.cancelled, result.failed) == (ids([run]), ids([other]))
        assert statuses(run, other) == ["cancelled", "queued"]

    def test_copy_does_not_overwrite(self, crawl: type[Any]) -> None:
        other = make_run()
        copy = crawl(run_id=other.run_id)
        setattr(copy, other._meta.pk.attname, other.pk)
        with pytest.raises(IntegrityError), transaction.atomic():
            copy.save()
        assert statuses(other) == ["queued"]


def rename_table(model: type[models.Model], name: str) -> None:
    with connection.schema_editor() as editor:
        editor.alter_db_table(model, model._meta.db_table, name)
    model._meta.db_table = name
    names_of.cache_clear()
    for field in model._meta.concrete_fields:
        vars(field).pop("cached_col", None)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["asked", "below", "closure", "line", "record"])
def test_table_with_a_short_name(name: str) -> None:
    """Parts of our own statements must not hide it."""
    before = get_run_model()._meta.db_table
    rename_table(get_run_model(), name)
    try:
        runs = [make_run()]
        for _ in range(5):
            runs.append(runs[-1].create_child())
        below = filter_runs(type(runs[0])._base_manager.all(), {"ancestor": runs[0].run_id})
        assert below.count() == 5
        assert cancel_runs([runs[-1].run_id], requested_by="x").cancelled == ids(runs[-1:])
        assert cancel_runs([runs[0].run_id], requested_by="x").cancelled == ids(runs[:1])
        assert set(statuses(*runs)) == {"cancelled"}
    finally:
        rename_table(get_run_model(), before)


@pytest.mark.django_db
class TestSaveLikeAnyModel:
    def test_generator_of_fields(self) -> None:
        run = make_run(title="old")
        run.title = "new"
        run.save(update_fields=(name for name in ["title"]))
        run.refresh_from_db()
        assert run.title == "new"

    def test_copy_by_clearing_the_key(self) -> None:
        run = make_run(title="again")
        run.pk, run.run_id = None, ""
        run._state.adding = True
        run.save()
        assert get_run_model()._default_manager.filter(title="again").count() == 2

    def test_copy_of_a_loaded_run(self) -> None:
        run = make_run(title="again")
        run.pk, run.run_id = None, "copy"
        run.save()
        assert get_run_model()._default_manager.filter(title="again").count() == 2

    def test_force_insert_of_a_loaded_run(self) -> None:
        run = make_run()
        with pytest.raises(IntegrityError), transaction.atomic():
            run.save(force_insert=True)


@pytest.mark.django_db
def test_hidden_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_run_model()
    hidden = make_run(title="hidden")
    visible = model._default_manager.exclude(title="hidden")
    assert cancel_runs([hidden.run_id], runs=visible, requested_by="x").failed == ids([hidden])
    monkeypatch.setattr(type(model._default_manager), "get_queryset", lambda self: visible)
    assert cancel_runs([hidden.run_id], requested_by="x").cancelled == ids([hidden])


if not Run._meta.swapped and not Run._meta.swappable:

    @isolate_apps("tests")
    def test_foreign_key_to_the_default_model() -> None:
        """A migration that names the setting would need the host to have it."""

        class Page(models.Model):
            run = models.ForeignKey(Run, models.CASCADE)

            class Meta:
                app_label = "tests"

        field = Page._meta.get_field("run")
        assert field.deconstruct()[3]["to"] == "django_run_cancel.run"
        assert field.swappable_setting is None


@pytest.mark.django_db
def test_retry_in_the_queue_is_not_called_never_started() -> None:
    run = make_run(RunStatus.QUEUED)
    run.mark_running()
    run.mark_queued()
    cancel_runs([run.run_id], requested_by="x")
    run.refresh_from_db()
    assert (run.stop_state, run.stopped_at) == ("stopping", None)


@pytest.mark.django_db
def test_same_label_is_not_the_same_requester() -> None:
    run = make_run()
    first = cancel_runs([run.run_id], requested_by="bob", source="api", idempotency_key="k")
    second = cancel_runs([run.run_id], requested_by="bob", source="python", idempotency_key="k")
    assert first.cancellation != second.cancellation


@pytest.mark.django_db
def test_abstract_model_names_its_table_with_the_status() -> None:
    assert issubclass(get_run_model()._meta.get_field("status").model, AbstractRun)


if IS_POSTGRESQL:

    @pytest.mark.django_db
    def test_closure_of_a_large_table_uses_the_index() -> None:
        """One that PostgreSQL planned badly: a thousand parents with a hundred children each."""
        model = get_run_model()
        parents = make_runs(1_000)
        meta = model._meta
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {meta.db_table} ("
                + ", ".join(field.column for field in meta.concrete_fields)
                + ") SELECT "
                + ", ".join(
                    {
                        "run_id": "'x' || n || '-' || p.run_id",
                        "parent": f"p.{meta.pk.column}",
                        meta.pk.name: "gen_random_uuid()"
                        if meta.pk.get_internal_type() == "UUIDField"
                        else f"nextval(pg_get_serial_sequence('{meta.db_table}', 'id'))",
                    }.get(field.name, f"p.{field.column}")
                    for field in meta.concrete_fields
                )
                + f" FROM {meta.db_table} p, generate_series(1, 100) n"
            )
            cursor.execute(f"ANALYZE {meta.db_table}")
        with CaptureQueriesContext(connection) as queries:
            # So few that not even reading this table from end to end could be faster.
            cancel_runs(ids(parents[:10]), requested_by="x", dry_run=True)
        closure = queries[0]["sql"]
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {closure}")
            plan = "\n".join(line for (line,) in cursor)
        assert "Seq Scan" not in plan, plan
        assert "Index" in plan

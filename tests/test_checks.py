"""The system checks of run models, backends, deliveries, databases and the schema."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.core import checks
from django.db import connection, models
from django.test import override_settings
from django.test.utils import isolate_apps
from django.utils import timezone

from django_run_cancel.backends import BaseBackend
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.checks import (
    check_backends,
    check_databases,
    check_deliveries,
    check_deployed_backends,
    check_run_model,
    check_schema,
    check_settings,
)
from django_run_cancel.models import AbstractRun, CancellationItem
from django_run_cancel.states import RunStatus
from tests.helpers import IS_POSTGRESQL, IS_SQLITE, found, make_run


@pytest.mark.django_db
def test_checks__nothing_to_find_here() -> None:
    assert checks.run_checks() == []


def test_checks__are_registered() -> None:
    registered = checks.registry.registry.get_checks()
    for check in (check_run_model, check_settings, check_databases, check_backends):
        assert check in registered
    assert check_schema not in registered
    registered = checks.registry.registry.get_checks(include_deployment_checks=True)
    assert check_schema in registered
    assert check_deployed_backends in registered
    assert check_deliveries in registered


@pytest.mark.parametrize(
    "name", ["nowhere.Run", "django_run_cancel.Nothing", "nonsense", "a.b.c", "", None, 5]
)
def test_run_model__not_installed(name: Any) -> None:
    with override_settings(RUN_CANCEL_RUN_MODEL=name):
        assert found(check_run_model) == ["E001"]
        assert found(check_databases) == []


def test_run_model__not_a_run() -> None:
    with override_settings(RUN_CANCEL_RUN_MODEL="auth.Group"):
        assert found(check_run_model) == ["E002"]


@isolate_apps("tests")
def test_run_model__meta_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(AbstractRun):
        class Meta:
            app_label = "tests"

    class OnlyPermissions(AbstractRun):
        class Meta:
            app_label = "tests"
            permissions = AbstractRun.Meta.permissions

    class OnlyUnique(AbstractRun):
        class Meta:
            app_label = "tests"
            constraints = (
                models.CheckConstraint(condition=models.Q(run_id__gt=""), name="not_it"),
                models.UniqueConstraint(fields=["run_id"], name="unique_id"),
            )

    class Good(AbstractRun):
        class Meta(AbstractRun.Meta):
            app_label = "tests"
            abstract = False

    class WithoutIndexes(AbstractRun):
        class Meta(AbstractRun.Meta):
            app_label = "tests"
            abstract = False
            indexes = (*AbstractRun.Meta.indexes[1:], models.Index(fields=["title"]))

    for model, expected in (
        (Bare, ["E003", "W012"]),
        (OnlyPermissions, ["E003", "W012"]),
        (OnlyUnique, ["E003", "W012"]),
        (WithoutIndexes, ["W012"]),
        (Good, []),
    ):
        monkeypatch.setattr("django_run_cancel.checks.get_run_model", lambda model=model: model)
        assert found(check_run_model) == expected, model


class Picky(BaseBackend):
    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        own = checks.Warning("Picky", hint="Do not be", id="django_run_cancel.W099")
        return [own, *super().check(**kwargs)]

    def ping(self) -> None:
        raise OSError("nobody is there")


def a_backend(path: str, **options: Any) -> Any:
    return override_settings(RUN_CANCEL_BACKENDS={"mine": {"BACKEND": path, "OPTIONS": options}})


@pytest.mark.parametrize(
    "configured",
    [
        [],
        {"mine": None},
        {"mine": {}},
        {"mine": "django_run_cancel.testing.DummyBackend"},
        {"mine": {"BACKEND": "nowhere.Backend"}},
        {"mine": {"BACKEND": "django_run_cancel.models.Run"}},
        {"mine": {"BACKEND": "django_run_cancel.states.ACTIVE"}},
        {"mine": {"BACKEND": "django_run_cancel.testing.DummyBackend", "URL": 1}},
    ],
)
def test_backends__cannot_be_made(configured: Any) -> None:
    with override_settings(RUN_CANCEL_BACKENDS=configured):
        assert found(check_backends) == ["E008"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"COMMAND": ["{run_id}"], "TIMOUT": 1}, "unknown OPTIONS: TIMOUT"),
        ({}, "needs OPTIONS: COMMAND"),
        ({"COMMAND": ["{run_id}"], "TIMEOUT": 0}, "must be seconds, above 0 and up to 10"),
        ({"COMMAND": ["{run_id}"], "TIMEOUT": 11}, "must be seconds, above 0 and up to 10"),
        ({"COMMAND": ["{run_id}"], "TIMEOUT": "2"}, "must be seconds, above 0 and up to 10"),
    ],
)
def test_backends__options(options: Any, message: str) -> None:
    with a_backend("django_run_cancel.backends.process.ProcessBackend", **options):
        assert found(check_backends) == ["E008"]
        assert message in check_backends()[0].msg


def test_backends__check_themselves() -> None:
    with a_backend(f"{__name__}.Picky"):
        assert found(check_backends) == ["W099"]
        assert found(check_deployed_backends) == ["W005"]
    assert found(check_deployed_backends) == []


@pytest.mark.django_db
def test_failed_deliveries() -> None:
    make_run(RunStatus.RUNNING)
    run = make_run(RunStatus.RUNNING)
    cancel_runs([run.run_id], requested_by="tests")

    def check() -> list[str]:
        return found(partial(check_deliveries, databases=["default"]))

    assert check() == []
    CancellationItem.objects.update(delivery="failed")
    assert check() == ["W007"]
    assert found(check_deliveries) == []  # not without leave to read the database
    CancellationItem.objects.update(delivery="delivered", handling="failed")
    assert check() == ["W007"]


@pytest.mark.django_db
def test_worker_that_is_down() -> None:
    run = make_run(RunStatus.RUNNING)
    cancel_runs([run.run_id], requested_by="tests")
    CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(minutes=12.5))
    (message,) = check_deliveries(databases=["default"])
    assert message.id == "django_run_cancel.W013"
    assert message.msg == "The delivery worker is 12 minutes late with a delivery."
    assert "deliver_cancellations" in (message.hint or "")


@pytest.mark.django_db
def test_deliveries_of_a_removed_backend() -> None:
    for _ in range(2):
        cancel_runs([make_run(RunStatus.RUNNING).run_id], requested_by="tests")
    with override_settings(RUN_CANCEL_BACKENDS={}):
        (message,) = check_deliveries(databases=["default"])
    assert message.id == "django_run_cancel.W015"
    assert message.msg == (
        "Deliveries that wait for the backend 'dummy', which is not in RUN_CANCEL_BACKENDS: 2."
    )
    assert "Add it again" in (message.hint or "")


@pytest.mark.django_db
def test_failed_deliveries__before_the_first_migrate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CancellationItem._meta, "db_table", "not_migrated_yet")
    assert found(partial(check_deliveries, databases=["default"])) == []


@pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
def test_databases__listening_without_psycopg_3(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db.backends.postgresql import psycopg_any

    with override_settings(RUN_CANCEL_LISTEN=True):
        assert found(check_databases) == []
        monkeypatch.setattr(psycopg_any, "is_psycopg3", False)
        assert found(check_databases) == ["W010"]


class RunsElsewhere:
    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return None if issubclass(model, AbstractRun) else "elsewhere"


def test_databases__runs_and_record_apart() -> None:
    with override_settings(DATABASE_ROUTERS=[RunsElsewhere()]):
        assert found(check_databases) == ["E007"]


def test_databases__nobody_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    assert found(check_databases) == ["E016"]


if IS_SQLITE:

    @pytest.mark.parametrize("mode", [None, "DEFERRED"])
    def test_databases__sqlite_deferred(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "transaction_mode", mode)
        assert found(check_databases) == ["W002"]


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ({"max_size": 1}, ["W014"]),
        ({"min_size": 1}, ["W014"]),
        ({"min_size": 1, "max_size": 2}, []),
        ({}, []),
        (True, []),
        (None, []),
    ],
)
def test_databases__postgresql_pool(
    pool: Any, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "vendor", "postgresql")
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict["OPTIONS"], "pool", pool)
        assert found(check_databases) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [("REPEATABLE_READ", ["W003"]), ("SERIALIZABLE", ["W003"]), ("READ_COMMITTED", [])],
)
def test_databases__postgresql_isolation(
    level: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from psycopg import IsolationLevel

    # The check looks at settings alone, so it can be asked about a database that is not there.
    monkeypatch.setattr(connection, "vendor", "postgresql")
    monkeypatch.setitem(
        connection.settings_dict["OPTIONS"], "isolation_level", IsolationLevel[level]
    )
    assert found(check_databases) == expected


@pytest.mark.parametrize(
    "name", ["COMPONENT_SPLIT_REQUEST", "ENFORCE_NON_BLANK_FIELDS", "CAMELIZE_NAMES"]
)
def test_schema__settings_that_change_the_contract(name: str) -> None:
    with override_settings(SPECTACULAR_SETTINGS={name: True}):
        assert found(check_schema) == ["W004"]
        (message,) = check_schema()
        assert name in message.msg
        assert f"custom_settings={{'{name}': False}}" in str(message.hint)

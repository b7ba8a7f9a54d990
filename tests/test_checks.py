from __future__ import annotations

from typing import Any

import pytest
from django.core import checks
from django.db import connection, models
from django.test import override_settings
from django.test.utils import isolate_apps

from django_run_cancel.checks import (
    check_databases,
    check_run_model,
    check_schema,
    check_settings,
)
from django_run_cancel.conf import RunCancelSettings, settings
from django_run_cancel.models import AbstractRun
from tests.helpers import IS_SQLITE


def found(check: Any) -> list[str]:
    """Return the numbers of what a check finds; each finding has a hint."""
    messages = check()
    assert all(message.hint for message in messages)
    return [message.id.removeprefix("django_run_cancel.") for message in messages]


@pytest.mark.django_db
def test_checks__nothing_to_find_here() -> None:
    assert checks.run_checks() == []


def test_checks__are_registered() -> None:
    registered = checks.registry.registry.get_checks()
    for check in (check_run_model, check_settings, check_databases, check_schema):
        assert check in registered


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

    for model, expected in (
        (Bare, ["E003"]),
        (OnlyPermissions, ["E003"]),
        (OnlyUnique, ["E003"]),
        (Good, []),
    ):
        monkeypatch.setattr("django_run_cancel.checks.get_run_model", lambda model=model: model)
        assert found(check_run_model) == expected, model


@pytest.mark.parametrize("path", ["nowhere.scope", "os.nothing", "os.sep", "nonsense", 5])
def test_settings__scope(path: Any) -> None:
    with override_settings(RUN_CANCEL_SCOPE=path):
        assert found(check_settings) == ["E004"]
    with override_settings(RUN_CANCEL_SCOPE="django_run_cancel.api.permissions.default_scope"):
        assert found(check_settings) == []


@pytest.mark.parametrize("prefixes", [[], {"a": ""}, {"a": "x" * 33}, {"": "a_"}, {1: "a_"}])
def test_settings__prefixes(prefixes: Any) -> None:
    with override_settings(RUN_CANCEL_ID_PREFIXES=prefixes):
        assert found(check_settings) == ["E005"]


def test_settings__misspelt() -> None:
    with override_settings(RUN_CANCEL_SCOOP="x"):
        assert found(check_settings) == ["W001"]
        assert "RUN_CANCEL_SCOOP" in check_settings()[0].msg


def test_settings__read_late_with_defaults() -> None:
    assert settings.SCOPE is None
    with override_settings(RUN_CANCEL_SCOPE="a.b"):
        assert settings.SCOPE == "a.b"
    assert set(RunCancelSettings.names()) == {
        "RUN_CANCEL_RUN_MODEL",
        "RUN_CANCEL_ID_PREFIXES",
        "RUN_CANCEL_SCOPE",
    }
    with pytest.raises(AttributeError):
        settings.SCOOP  # noqa: B018


def test_settings__without_time_zones() -> None:
    with override_settings(USE_TZ=False):
        assert found(check_settings) == ["E006"]


class RunsElsewhere:
    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return None if issubclass(model, AbstractRun) else "elsewhere"


def test_databases__runs_and_record_apart() -> None:
    with override_settings(DATABASE_ROUTERS=[RunsElsewhere()]):
        assert found(check_databases) == ["E007"]


if IS_SQLITE:

    @pytest.mark.parametrize("mode", [None, "DEFERRED"])
    def test_databases__sqlite_deferred(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "transaction_mode", mode)
        assert found(check_databases) == ["W002"]


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
        assert name in check_schema()[0].msg

"""The system checks of settings."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from django_run_cancel.checks import check_settings
from django_run_cancel.conf import RunCancelSettings, settings
from tests.helpers import found


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
    assert RunCancelSettings.names()[0] == "RUN_CANCEL_RUN_MODEL"
    assert settings.GRACE_SECONDS == 30
    with pytest.raises(AttributeError):
        settings.SCOOP  # noqa: B018


@pytest.mark.parametrize("handlers", ["os.getpid", ["os.sep"], ["nowhere.handler"], [5], None])
def test_settings__handlers(handlers: Any) -> None:
    with override_settings(RUN_CANCEL_HANDLERS=handlers):
        assert found(check_settings) == ["E009"]
    with override_settings(RUN_CANCEL_HANDLERS=["os.getpid"]):
        assert found(check_settings) == []


@pytest.mark.parametrize(
    "name",
    [
        "POLL_SECONDS",
        "HEARTBEAT_SECONDS",
        "GRACE_SECONDS",
        "PRESUME_SECONDS",
        "STALLED_SECONDS",
        "MAX_ATTEMPTS",
        "MAX_TREE",
        "MAX_LOCK_MS",
        "MAX_BULK",
    ],
)
def test_settings__numbers(name: str) -> None:
    for value in (
        0,
        -1,
        "5",
        True,
        float("inf"),
        float("nan"),
        *([None] if name != "STALLED_SECONDS" else []),
    ):
        with override_settings(**{f"RUN_CANCEL_{name}": value}):
            assert found(check_settings) == ["E012"], value


@pytest.mark.parametrize("name", ["MAX_ATTEMPTS", "MAX_TREE", "MAX_LOCK_MS", "MAX_BULK"])
def test_settings__whole_numbers(name: str) -> None:
    for value, expected in {1.5: ["E012"], 1: []}.items():
        with override_settings(**{f"RUN_CANCEL_{name}": value}):
            assert found(check_settings) == expected


def test_settings__numbers_that_do_not_fit_together() -> None:
    with override_settings(RUN_CANCEL_GRACE_SECONDS=300):
        assert found(check_settings) == ["W008"]
    with override_settings(RUN_CANCEL_STALLED_SECONDS=20):
        assert found(check_settings) == ["W009"]
    with override_settings(RUN_CANCEL_STALLED_SECONDS=60):
        assert found(check_settings) == []


def test_settings__without_time_zones() -> None:
    with override_settings(USE_TZ=False):
        assert found(check_settings) == ["E006"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TRACK", ["a.*"], []),
        ("TRACK", "a.*", ["E017"]),
        ("TRACK", [1], ["E017"]),
        ("DESCRIBE", "os.path.join", []),
        ("DESCRIBE", "os.path.nothing", ["E018"]),
    ],
)
def test_settings__of_integrations(name: str, value: Any, expected: list[str]) -> None:
    with override_settings(**{f"RUN_CANCEL_{name}": value}):
        assert found(check_settings) == expected

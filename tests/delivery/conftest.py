from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from django_run_cancel.testing import DummyBackend
from tests.delivery import helpers
from tests.delivery.helpers import HANDLED


@pytest.fixture(autouse=True)
def _not_looked_yet() -> None:
    helpers.look_again()


@pytest.fixture
def backends(settings: Any, dummy: DummyBackend) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        **settings.RUN_CANCEL_BACKENDS,
        "exploding": {"BACKEND": f"{helpers.__name__}.Exploding"},
        "mute": {"BACKEND": f"{helpers.__name__}.Mute"},
        "listing": {"BACKEND": f"{helpers.__name__}.Listing"},
        "nodding": {"BACKEND": f"{helpers.__name__}.Nodding"},
        "speechless": {"BACKEND": f"{helpers.__name__}.Speechless"},
        "gentle": {"BACKEND": f"{helpers.__name__}.Gentle"},
        "unsure": {"BACKEND": f"{helpers.__name__}.Unsure"},
        "gone": {"BACKEND": "nowhere.Backend"},
    }


@pytest.fixture
def handled(settings: Any) -> Iterator[list[str]]:
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.book"]
    HANDLED.clear()
    yield HANDLED
    HANDLED.clear()

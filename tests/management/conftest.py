"""Fixtures of the tests of commands."""

from __future__ import annotations

import pytest

from django_run_cancel.cancellation import chunks
from django_run_cancel.cancellation.chunks import Pace


@pytest.fixture
def fixed_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each transaction cancel a hundred runs, however fast the machine is."""

    class Fixed(Pace):
        def adapt(self, count: int, seconds: float) -> None:
            pass

    monkeypatch.setattr(chunks, "_pace", Fixed())

"""Settings of the workers that the tests of the backends start."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

RUN_CANCEL_POLL_SECONDS = 0.1

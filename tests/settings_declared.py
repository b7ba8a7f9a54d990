"""A host that names the default run model in its settings."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

RUN_CANCEL_RUN_MODEL = "django_run_cancel.Run"

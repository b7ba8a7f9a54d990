"""A host with a run model of its own, with another kind of primary key."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.hostapp"]
RUN_CANCEL_RUN_MODEL = "hostapp.Job"
RUN_CANCEL_ID_PREFIXES = {"import": "imp_"}

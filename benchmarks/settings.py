"""Settings of the benchmarks: those of the tests, with a database as in production."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import DATABASE, RUN_CANCEL_BACKENDS

DATABASE["OPTIONS"].pop("options", None)  # commits wait for the disk, as the server is set up
DATABASE["CONN_MAX_AGE"] = None
ROOT_URLCONF = "benchmarks.urls"
DEBUG = False
RUN_CANCEL_BACKENDS["instant"] = {"BACKEND": "benchmarks.delivery.Instant"}

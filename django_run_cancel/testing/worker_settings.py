"""Settings for workers of the conformance suite: those of the host, with the test databases."""

from __future__ import annotations

import json
import os
from importlib import import_module

_host = import_module(os.environ["RUN_CANCEL_HOST_SETTINGS"])
globals().update({name: value for name, value in vars(_host).items() if name.isupper()})

DATABASES = {
    alias: {**_host.DATABASES[alias], "NAME": name}
    for alias, name in json.loads(os.environ["RUN_CANCEL_TEST_DATABASES"]).items()
}
RUN_CANCEL_POLL_SECONDS = 0.1
RUN_CANCEL_DESCRIBE = "django_run_cancel.testing.jobs.describe"

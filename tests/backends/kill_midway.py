"""Runs a step of the delivery and kills this process before or after it.

``python -m tests.backends.kill_midway dispatch|deliver_due before|after STEP [RUN_ID]``: STEP is a
dotted name below ``django_run_cancel``; ``BACKENDS`` holds RUN_CANCEL_BACKENDS as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import django
from django.conf import settings
from django.utils.module_loading import import_string


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(action: str, when: str, step: str, *run_id: str) -> None:
    from django_run_cancel.delivery import deliver_due, dispatch
    from django_run_cancel.models import get_run_model

    path, _, name = f"django_run_cancel.{step}".rpartition(".")
    try:
        place = import_string(path)
    except ImportError:
        place = sys.modules[path]
    real = getattr(place, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            real(*args, **kwargs)
        die()

    setattr(place, name, wrapped)
    if action == "dispatch":
        dispatch(get_run_model()._default_manager.get(run_id=run_id[0]), "tested")
    else:
        deliver_due()


if __name__ == "__main__":
    django.setup()
    settings.RUN_CANCEL_BACKENDS = json.loads(os.environ["BACKENDS"])
    main(*sys.argv[1:])

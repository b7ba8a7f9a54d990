"""What the ``process`` backend starts in the tests: ``python -m tests.backends.process_jobs ID``.

It waits until its folder has a file ``online``, so that the suite can have its worker offline, and
for its turn, as the jobs of a worker that runs one at a time do.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

import django

from django_run_cancel.integrations.process import exit_on_sigterm


def main(run_id: str) -> None:
    from django_run_cancel.exceptions import RunCancelled
    from django_run_cancel.execution import execution
    from django_run_cancel.testing import jobs

    folder = Path(os.environ[jobs.TRACE_FOLDER])
    while True:
        while not (folder / "online").exists():
            time.sleep(0.02)
        try:
            with (folder / "turn").open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                with execution(run_id, requeue_on=lambda _: jobs.has_tries_left(run_id)) as run:
                    jobs.run_job(run)
            return
        except RunCancelled:
            return
        except jobs.JobFailed:
            if not jobs.has_tries_left(run_id):
                return
            time.sleep(1)


if __name__ == "__main__":
    exit_on_sigterm()
    django.setup()
    main(sys.argv[1])

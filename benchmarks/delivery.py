"""How many items a second one delivery worker tells, by backlog and number of backends.

Run it with ``python -m benchmarks.delivery [BACKLOG]``. ``DATABASE_URL`` chooses the server; the
database is made for the occasion. The backends answer at once, so that what remains is the cost of
claiming and recording. It should not depend on how much is pending, nor on how many backends are
configured.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest

SECONDS = 10.0
"""For which each case is measured."""


class Instant(BaseBackend):
    """Answers at once that the executor was told."""

    def stop(self, requests: Sequence[StopRequest], *, force: bool) -> Mapping[str, Any]:
        return {request.external_id: StopOutcome.TOLD for request in requests}


def main(backlog: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    import django

    django.setup()
    from django.db import connection

    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        for configured, used, pending in (
            (1, 1, backlog // 10),
            (1, 1, backlog),
            (20, 1, backlog),
            (20, 20, backlog),
        ):
            measure(configured, used, pending)
    finally:
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)


def measure(configured: int, used: int, pending: int) -> None:
    from django.test import override_settings

    from django_run_cancel.delivery import deliver_due

    aliases = [f"backend{number}" for number in range(configured)]
    backends = {alias: {"BACKEND": "benchmarks.delivery.Instant"} for alias in aliases}
    with override_settings(RUN_CANCEL_BACKENDS=backends):
        fill(aliases[:used], pending)
        told, steps = 0, 0
        begin = time.perf_counter()
        while (took := time.perf_counter() - begin) < SECONDS and told < pending:
            told += deliver_due().delivered
            steps += 1
    print(
        f"{configured:>2} backends, {used:>2} with items, {pending:>6} pending: "
        f"{told / took:.0f} items/s, {1000 * took / steps:.0f} ms a step",
        flush=True,
    )


def fill(aliases: list[str], pending: int) -> None:
    """Cancel that many runs, in place of all that were there."""
    from django.db import connection

    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.models import Cancellation, CancellationItem, get_run_model

    model = get_run_model()
    model._base_manager.all().delete()
    CancellationItem.objects.all().delete()
    Cancellation.objects.all().delete()
    for start in range(0, pending, 1_000):
        runs = [
            model(status="running", backend=aliases[number % len(aliases)], external_id=str(number))
            for number in range(start, min(start + 1_000, pending))
        ]
        model._base_manager.bulk_create(runs)
        cancel_runs([run.run_id for run in runs], requested_by="benchmark")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 90_000)

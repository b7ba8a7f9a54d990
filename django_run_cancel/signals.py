"""Signals, sent after the transaction has committed. Errors of receivers are logged.

A dry run sends none, and a run that was cancelled before sends none again.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Sent once for each run that a request has cancelled, including descendants.
#: sender: the run model; run_id: str; cancellation_id: str.
run_cancelled = Signal()

#: Sent once for each request that has cancelled at least one run.
#: sender: the run model; run_ids: list[str]; cancellation_id: str.
runs_cancelled = Signal()

#: Sent once for each cancelled run, when its code has stopped or is presumed to have stopped.
#: sender: the run model; run_id: str; cancellation_id: str; stop_state: str.
run_stopped = Signal()

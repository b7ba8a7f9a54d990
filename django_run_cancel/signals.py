"""Signals, sent after the transaction has committed. Receivers that raise are logged.

Nothing is sent for a run that was cancelled already, nor for a dry run.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Once per run that a request has changed, children included.
#: sender: the run model; run_id: str; cancellation_id: str.
run_cancelled = Signal()

#: Once per request that has changed at least one run.
#: sender: the run model; run_ids: list[str]; cancellation_id: str.
runs_cancelled = Signal()

#: Once per cancelled run, when it is known or presumed that its code does not run.
#: sender: the run model; run_id: str; cancellation_id: str; stop_state: str.
run_stopped = Signal()

"""What running code uses: the start of a run, checkpoints, and the record of how it ended."""

from __future__ import annotations

from django_run_cancel.execution.context import checkpoint, current_run, on_cancel
from django_run_cancel.execution.executions import Execution, execution

__all__ = ["Execution", "checkpoint", "current_run", "execution", "on_cancel"]

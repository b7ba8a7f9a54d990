"""The API for the code of a run: ``execution()``, checkpoints and callbacks."""

from __future__ import annotations

from django_run_cancel.execution.context import checkpoint, current_run, on_cancel
from django_run_cancel.execution.executions import Execution, execution

__all__ = ["Execution", "checkpoint", "current_run", "execution", "on_cancel"]

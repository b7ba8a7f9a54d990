"""The models: runs, cancellations with their items, and API keys."""

from __future__ import annotations

from django_run_cancel.models.api_keys import ApiKey
from django_run_cancel.models.cancellations import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
)
from django_run_cancel.models.managers import RunManager, RunQuerySet, get_run_model, run_rows
from django_run_cancel.models.runs import AbstractRun, Run

__all__ = [
    "AbstractRun",
    "ApiKey",
    "Cancellation",
    "CancellationChunk",
    "CancellationItem",
    "Run",
    "RunManager",
    "RunQuerySet",
    "get_run_model",
    "run_rows",
]

"""The models: runs, the record of who cancelled what, and the API keys."""

from __future__ import annotations

from django_run_cancel.models.keys import ApiKey
from django_run_cancel.models.record import Cancellation, CancellationItem
from django_run_cancel.models.runs import (
    AbstractRun,
    Run,
    RunQuerySet,
    get_run_model,
    run_rows,
)

__all__ = [
    "AbstractRun",
    "ApiKey",
    "Cancellation",
    "CancellationItem",
    "Run",
    "RunQuerySet",
    "get_run_model",
    "run_rows",
]

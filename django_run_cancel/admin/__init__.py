"""The admin: runs, what was cancelled by whom, and API keys."""

from __future__ import annotations

from django_run_cancel.admin.cancelling import CancelRunsAdminMixin
from django_run_cancel.admin.keys import ApiKeyAdmin
from django_run_cancel.admin.records import CancellationAdmin, CancellationItemAdmin
from django_run_cancel.admin.runs import RunAdmin

__all__ = [
    "ApiKeyAdmin",
    "CancelRunsAdminMixin",
    "CancellationAdmin",
    "CancellationItemAdmin",
    "RunAdmin",
]

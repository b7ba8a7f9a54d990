"""The admin: runs, what was cancelled by whom, and API keys."""

from __future__ import annotations

from django_run_cancel.admin.api_keys import ApiKeyAdmin
from django_run_cancel.admin.cancellations import CancellationAdmin, CancellationItemAdmin
from django_run_cancel.admin.mixins import CancelRunsAdminMixin
from django_run_cancel.admin.references import CancelReferencedRunsAdminMixin
from django_run_cancel.admin.runs import RunAdmin

__all__ = [
    "ApiKeyAdmin",
    "CancelReferencedRunsAdminMixin",
    "CancelRunsAdminMixin",
    "CancellationAdmin",
    "CancellationItemAdmin",
    "RunAdmin",
]

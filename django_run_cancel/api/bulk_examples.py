"""Examples of bulk cancellations in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiExample

from django_run_cancel.cancellation.bulk import PREVIEW_LIMIT

CANCELLATION_ID = "can_01a203a1d97e75d298e752724035d9bd"
RUN_ID = "tsk_01a203a1d98071f7a1f6d1e2f0c4b9aa"
FILTER = {
    "status": ["queued", "running"],
    "type": "task",
    "created_before": "2026-01-01T12:00:00Z",
    "metadata": {"customer": 42},
}

RECORD: dict[str, Any] = {
    "cancellation_id": CANCELLATION_ID,
    "requested_by": "billing service (rc_CgGdeRbK)",
    "source": "api",
    "ip_address": "192.0.2.1",
    "request_id": "",
    "reason": "Wrong prices",
    "force": False,
    "requested_at": "2026-01-01T12:00:00Z",
    "state": "pending",
    "finished_at": None,
    "selection": {"filter": FILTER},
    "total_count": 250_000,
    "processed_count": 0,
    "cancelled_count": 0,
    "already_count": 0,
    "failed_count": 0,
    "cascaded_count": 0,
    "rate": None,
    "estimated_end": None,
}

PREVIEW: dict[str, Any] = {
    "count": PREVIEW_LIMIT,
    "is_capped": True,
    "sample": [
        {
            "run_id": RUN_ID,
            "outcome": "cancelled",
            "via": "requested",
            "previous_status": "running",
        }
    ],
}

EXAMPLES = [
    OpenApiExample(
        "By filter", value={"filter": FILTER, "reason": "Wrong prices"}, request_only=True
    ),
    OpenApiExample("By ids", value={"run_ids": [RUN_ID], "force": True}, request_only=True),
    OpenApiExample(
        "Preview", value={"filter": {"status": "queued"}, "dry_run": True}, request_only=True
    ),
    OpenApiExample("Started", value=RECORD, response_only=True, status_codes=["202"]),
    OpenApiExample("What would happen", value=PREVIEW, response_only=True, status_codes=["200"]),
]

"""Dispatches runs to executors, and delivers cancellations to executors and handlers."""

from __future__ import annotations

from django_run_cancel.delivery.dispatcher import dispatch
from django_run_cancel.delivery.outbox import queue_size, retry_deliveries
from django_run_cancel.delivery.step import DeliveryReport, deliver_due

__all__ = ["DeliveryReport", "deliver_due", "dispatch", "queue_size", "retry_deliveries"]

"""A worker of Procrastinate in this process, and the runs of its jobs in memory."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from procrastinate import App

from django_run_cancel.models import get_run_model


def work(app: App) -> None:
    """Execute what is due."""
    worker: Any = app.run_worker_async
    async_to_sync(worker)(wait=False, install_signal_handlers=False, listen_notify=False)


def status(app: App, job_id: int) -> str:
    connector: Any = app.connector
    return str(connector.jobs[job_id]["status"])


def run_id(job_id: int) -> str:
    return f"procrastinate-{job_id}"


def runs() -> Any:
    return get_run_model()._default_manager

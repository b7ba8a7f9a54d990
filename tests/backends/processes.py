"""Backends for processes of the tests, and what finds their processes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from django_run_cancel.backends.process import ProcessBackend


def pids_of(name: str, value: str) -> list[int]:
    """Return the processes that have a variable in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return sorted(found)


def backend(*command: str, **options: Any) -> ProcessBackend:
    return ProcessBackend("process", {"TIMEOUT": 1, "COMMAND": command, **options})


def shell(script: str, **options: Any) -> ProcessBackend:
    return backend("/bin/sh", "-c", script, "{run_id}", **options)

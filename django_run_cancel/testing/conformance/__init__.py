"""The test suite that every backend passes with its real executor. Needs pytest."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(f"{__name__}.cases", f"{__name__}.suite")

from django_run_cancel.testing.conformance.cases import ALIAS, ExecutorCase
from django_run_cancel.testing.conformance.harness import Harness
from django_run_cancel.testing.conformance.proxy import Proxy
from django_run_cancel.testing.conformance.suite import (
    BackendConformance,
    BrokerConformance,
    TrackedConformance,
    WorkerConformance,
)

__all__ = [
    "ALIAS",
    "BackendConformance",
    "BrokerConformance",
    "ExecutorCase",
    "Harness",
    "Proxy",
    "TrackedConformance",
    "WorkerConformance",
]

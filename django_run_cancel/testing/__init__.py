"""Helpers for the tests of hosts and of authors of backends.

``testing.conformance`` is the test suite for backends, the only part that needs pytest.
"""

from __future__ import annotations

from django_run_cancel.testing.dummy import DummyBackend
from django_run_cancel.testing.helpers import cancel_now, wait_until

__all__ = ["DummyBackend", "cancel_now", "wait_until"]

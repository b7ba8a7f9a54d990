"""``make demo``: cancel 100 runs in one request, stop real work, and check what came of it."""

from __future__ import annotations


class DemoFailed(Exception):
    """Something is not as the demo says."""

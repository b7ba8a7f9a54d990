"""Commands that the process backend starts: how one ends that gets SIGTERM."""

from __future__ import annotations

import signal
import sys


def exit_on_sigterm() -> None:
    """Let SIGTERM raise ``SystemExit`` in the main thread, as ``sys.exit()`` does there.

    Python ends at once by default: ``finally`` is not run, and nobody acknowledges the stop. Call
    this at the start of a command that is run by this backend. Further SIGTERMs are ignored, so
    that cleaning up is not interrupted; SIGKILL ends what takes longer than the grace.
    """

    def end(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, end)

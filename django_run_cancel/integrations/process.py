"""``exit_on_sigterm()``: for programs that the process backend starts and stops."""

from __future__ import annotations

import signal
import sys


def exit_on_sigterm() -> None:
    """Make SIGTERM raise ``SystemExit`` in the main thread.

    Call it at the start of a program that the process backend runs. By default, SIGTERM ends Python
    without executing ``finally`` blocks, so ``execution()`` could not record that the code has
    stopped. Further SIGTERMs are ignored, so that they do not interrupt the clean-up; SIGKILL ends
    the process after the grace.
    """

    def end(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, end)

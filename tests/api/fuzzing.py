"""What the fuzz tests share: how many examples, a corpus of odd bodies, and coverage as a guide.

With ``RUN_CANCEL_FUZZ_EXAMPLES=5000`` each test tries as many requests, and Hypothesis is led to
those that reach more lines of the package; ``nox -s fuzz`` does that. A body that has found a fault
goes into ``corpus.jsonl``: a line is a name, and the bytes of the body as characters up to 255.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings, target
from hypothesis import strategies as st

import django_run_cancel

PACKAGE = str(Path(django_run_cancel.__file__).parent)

IS_LONG = "RUN_CANCEL_FUZZ_EXAMPLES" in os.environ

LINES = (Path(__file__).parent / "corpus.jsonl").read_text("utf-8").splitlines()
CORPUS = {name: body.encode("latin-1") for name, body in map(json.loads, LINES)}


def fuzz(few: int) -> settings:
    """Return the settings of a test: few examples, or as many as the environment says."""
    return settings(
        max_examples=int(os.environ["RUN_CANCEL_FUZZ_EXAMPLES"]) if IS_LONG else few,
        deadline=None,
        # The fixtures hold nothing that an example changes for the next one.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def changed_bodies(draw: st.DrawFn) -> bytes:
    """Draw a body of the corpus with parts cut out, repeated or replaced by those of others."""
    bodies = st.sampled_from(list(CORPUS.values()))
    body = draw(bodies)
    for _ in range(draw(st.integers(0, 4))):
        begin, end = sorted(draw(st.integers(0, len(body))) for _ in range(2))
        other = draw(bodies)
        start = draw(st.integers(0, len(other)))
        part = draw(st.sampled_from([b"", body[begin:end] * 2, other[start : start + 20]]))
        body = body[:begin] + (part or draw(st.binary(max_size=3))) + body[end:]
    return body


@contextmanager
def guided_by_coverage() -> Iterator[None]:
    """Tell Hypothesis how many lines of the package a block has reached; not in a short run.

    There, something else may measure the coverage.
    """
    if not IS_LONG:
        yield
        return
    lines: set[Any] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        lines.add((frame.f_code, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
    target(len(lines), label="lines")

"""What commands show people: a progress bar, if tqdm is installed, and counts in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(unit: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """Yield a function that takes how many more are done.

    Args:
        unit: What is counted, in the singular.
        total: How many there are, if that is known.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield int
        return
    with tqdm(total=total, unit=unit, disable=None, leave=False) as bar:
        yield bar.update


def in_words(count: int, one: str, many: str) -> str:
    """Return a number of things in words, such as ``1 run`` or ``2,000 runs``."""
    return f"1 {one}" if count == 1 else f"{count:,} {many}"

"""A Huey in memory, whose tasks this process executes."""

from __future__ import annotations

from huey import MemoryHuey


class Published(MemoryHuey):  # type: ignore[misc]
    """A Huey in memory whose consumer is this process."""

    def work(self) -> None:
        """Execute the tasks that are enqueued, and those that these enqueue."""
        while (task := self.dequeue()) is not None:
            self.execute(task)

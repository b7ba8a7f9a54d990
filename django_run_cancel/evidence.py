"""How the work of cancelled runs ended."""

from __future__ import annotations

from django_run_cancel.models import CancellationItem, get_run_model


def with_evidence(items: list[CancellationItem]) -> list[CancellationItem]:
    """Add to each item ``stop_state`` and ``stopped_at`` of its run, as far as they are known.

    One statement; blank and None where the run was not found or is gone.
    """
    runs = get_run_model()._base_manager.filter(run_id__in=[item.run_id for item in items])
    known = runs.values_list("run_id", "stop_state", "stopped_at")
    evidence = {run_id: (state, at) for run_id, state, at in known}
    for item in items:
        found = evidence.get(item.run_id) if item.previous_status else None
        item.stop_state, item.stopped_at = found or ("", None)  # type: ignore[attr-defined]
    return items

"""How runs are shown in the admin: the state as a badge, the id shortened, times and ages."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils import formats, timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _

from django_run_cancel.states import ACTIVE, WAITING, RunStatus, StopState

ID_LENGTH_THAT_FITS = 16
"""Longer ids are shortened, in the middle."""

ID_END = 6
"""Characters of a shortened id after the gap. Ids of runs of the same minute begin alike."""


def state_badge(run: Any) -> Any:
    """Return the state in words, on a ground whose colour goes with it."""
    return format_html(
        '<span class="run-cancel-state run-cancel-state-{}">{}</span>',
        _kind(run.status, run.stop_state),
        run.state_words,
    )


def state_and_time(run: Any) -> Any:
    """Return the state and, of a run whose code goes on, for how long it has had it."""
    moment = in_state_since(run)
    if moment is None or run.status in WAITING or not is_going_on(run):
        return state_badge(run)
    return format_html("{}<br>{}", state_badge(run), format_html(_("for {age}"), age=age(moment)))


def is_going_on(run: Any) -> bool:
    """Tell whether a run is active, or its code may go on after it was cancelled."""
    return run.status in ACTIVE or run.stop_state == StopState.STOPPING


def in_state_since(run: Any) -> datetime | None:
    """Return when a run came into its state; None of one that was created with a final status."""
    moment: datetime | None = run.stopped_at or run.finished_at
    if run.status in WAITING:
        moment = run.queued_at or run.created_at
    elif run.status in ACTIVE:
        moment = run.started_at or run.created_at
    return moment


def _kind(status: str, stop_state: str) -> str:
    if status == RunStatus.CANCELLED:
        return "stopping" if stop_state in {"", StopState.STOPPING} else "stopped"
    if status in WAITING or status == RunStatus.PAUSED:
        return "waiting"
    if status in ACTIVE:
        return "running"
    return "completed" if status == RunStatus.COMPLETED else "failed"


def short_id(run_id: str) -> Any:
    """Return the beginning and end of an id. All of it appears on hover, and is what is copied."""
    if len(run_id) <= ID_LENGTH_THAT_FITS:
        return format_html('<code class="run-cancel-id">{}</code>', run_id)
    # The style sheet cuts the first part off, so that the text of the element is the whole id.
    return format_html(
        '<code class="run-cancel-id" title="{}"><span>{}</span><span>{}</span></code>',
        run_id,
        run_id[:-ID_END],
        run_id[-ID_END:],
    )


def duration(span: timedelta) -> str:
    """Return a length of time in its largest unit, such as "3 min"."""
    seconds = max(int(span.total_seconds()), 0)
    if seconds < 60:
        return _("%(count)s s") % {"count": seconds}
    if seconds < 3_600:
        return _("%(count)s min") % {"count": seconds // 60}
    if seconds < 86_400:
        return _("%(count)s h") % {"count": seconds // 3_600}
    return _("%(count)s d") % {"count": shown(seconds // 86_400)}


def age(moment: datetime) -> Any:
    """Return how long ago something was. The time itself appears on hover."""
    return _time(moment, duration(timezone.now() - moment))


def clock(moment: datetime) -> Any:
    """Return a time to the second; with the date unless it is today. All appears on hover."""
    local = timezone.localtime(moment)
    is_today = local.date() == timezone.localtime(timezone.now()).date()
    text = local.strftime("%H:%M:%S")
    if not is_today:
        text = f"{formats.date_format(local, 'SHORT_DATE_FORMAT')} {text}"
    return _time(moment, text)


def _time(moment: datetime, text: str) -> Any:
    local = timezone.localtime(moment)
    exact = f"{formats.date_format(local, 'DATE_FORMAT')}, {local:%H:%M:%S}"
    return format_html('<time datetime="{}" title="{}">{}</time>', moment.isoformat(), exact, text)


def shown(count: int, limit: int | None = None) -> str:
    """Return a number as people read it, with a plus when there are more than were counted."""
    if limit is not None and count > limit:
        return f"{formats.number_format(limit, force_grouping=True)}+"
    return formats.number_format(count, force_grouping=True)


def heading(run: Any) -> Any:
    """Return what to call a run: its title or, if it has none, its id."""
    return run.title or short_id(run.run_id)

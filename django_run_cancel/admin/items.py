"""The table on the page of a cancellation: each run, filtered, a page at a time."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, QueryDict
from django.utils.html import format_html
from django.utils.translation import gettext as _

from django_run_cancel.admin.base import link
from django_run_cancel.admin.columns import short_id, shown
from django_run_cancel.admin.mixins import CancelRunsAdminMixin
from django_run_cancel.cancellation.evidence import with_evidence
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import (
    STATE_WORDS,
    Delivery,
    Outcome,
    words_of_status,
    words_of_stop,
)

SHOWN_ITEMS = 25
"""Items on a page."""

SEARCHED_ITEMS = 10_000
"""Items among which a page looks for those that pass its filters."""

MAX_KEY = 2**63 - 1

PARAMETERS = ("outcome", "stop_state", "after")


def table_of(request: HttpRequest, site: AdminSite, record: Cancellation) -> dict[str, Any]:
    """Return what the table shows, as the query string says. What it says wrongly is ignored.

    Args:
        request: Whose query string counts.
        site: The admin site, for links to the runs.
        record: The cancellation.
    """
    chosen = chosen_of(request)
    items = CancellationItem.objects.filter(cancellation=record).order_by("pk")
    if after := chosen.get("after"):
        items = items.filter(pk__gt=int(after))
    items, end = _filtered(items, chosen)
    found = list(items[: SHOWN_ITEMS + 1])
    rows = with_evidence(found[:SHOWN_ITEMS])
    last = rows[-1].pk if len(found) > SHOWN_ITEMS else end
    everything = link(
        site,
        _("All, in a list of their own"),
        "django_run_cancel_cancellationitem_changelist",
        query=f"?cancellation__exact={record.pk}",
    )
    return {
        "rows": _rows(request, site, rows),
        "filters": [
            _filter(_("Outcome"), "outcome", Outcome.choices, chosen),
            _filter(_("State now"), "stop_state", STATE_WORDS.items(), chosen),
        ],
        "searched": end and shown(SEARCHED_ITEMS),
        "first_url": after and _query(chosen, after=None),
        "next_url": last and _query(chosen, after=str(last)),
        "all": everything,
    }


def chosen_of(request: HttpRequest) -> dict[str, str]:
    """Return the filters and the place in the query string that a table can have."""
    chosen = {name: request.GET.get(name, "") for name in PARAMETERS}
    after = chosen["after"]
    is_key = after.isascii() and after.isdecimal() and len(after) < 20 and int(after) <= MAX_KEY
    valid = {
        "outcome": chosen["outcome"] in Outcome.values,
        "stop_state": chosen["stop_state"] in STATE_WORDS,
        "after": is_key,
    }
    return {name: value for name, value in chosen.items() if valid[name]}


def _filtered(
    items: QuerySet[CancellationItem], chosen: dict[str, str]
) -> tuple[QuerySet[CancellationItem], int | None]:
    """Return the items that pass the filters, and the key of the last one that was looked at.

    The key is None when all were. There may be a million, of which none passes.
    """
    if not chosen.keys() & {"outcome", "stop_state"}:
        return items, None
    keys = items.values_list("pk", flat=True)
    end = keys[SEARCHED_ITEMS - 1 : SEARCHED_ITEMS].first()
    if end is not None:
        items = items.filter(pk__lte=end)
    if outcome := chosen.get("outcome"):
        items = items.filter(outcome=outcome)
    if stop_state := chosen.get("stop_state"):
        runs = get_run_model()._base_manager.filter(run_id=OuterRef("run_id"))
        items = items.exclude(previous_status="").filter(Exists(runs.filter(stop_state=stop_state)))
    return items, end


def _query(chosen: dict[str, str], **changes: str | None) -> str:
    query = QueryDict(mutable=True)
    query.update({key: value for key, value in {**chosen, **changes}.items() if value is not None})
    return f"?{query.urlencode()}"


def _filter(title: str, name: str, choices: Any, chosen: dict[str, str]) -> dict[str, Any]:
    current = chosen.get(name)
    return {
        "title": title,
        "choices": [
            {
                "label": label,
                "is_chosen": value == current,
                "url": _query(chosen, **{name: value, "after": None}),
            }
            for value, label in [(None, _("All")), *choices]
        ],
    }


def _rows(request: HttpRequest, site: AdminSite, items: list[CancellationItem]) -> list[Any]:
    titles = titles_of(request, site, items)
    page = site._registry.get(get_run_model())
    rows = []
    for item in items:
        run_id = short_id(item.run_id)
        title: Any = titles.get(item.run_id) or run_id
        if item.previous_status and isinstance(page, CancelRunsAdminMixin):
            title = format_html('<a href="{}">{}</a>', page.url_of_run(item.run_id), title)
        told = item.get_delivery_display()
        if item.delivery == Delivery.FAILED:
            told = f"{told}: {item.last_error}"
        rows.append(
            {
                "title": title,
                "run_id": run_id,
                "outcome": f"{item.get_outcome_display()} ({item.get_via_display()})",
                "work": words_of_stop(item.stop_state) or "-",  # type: ignore[attr-defined]
                "before": words_of_status(item.previous_status) or "-",
                "told": told,
            }
        )
    return rows


def titles_of(
    request: HttpRequest, site: AdminSite, items: list[CancellationItem]
) -> dict[str, str]:
    """Return the titles of the runs that the user may see, by their ids."""
    page = site._registry.get(get_run_model())
    if page is None or not page.has_view_permission(request):
        return {}
    runs = page.get_queryset(request).filter(run_id__in=[item.run_id for item in items])
    return dict(runs.values_list("run_id", "title"))

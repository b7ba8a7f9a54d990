"""``CancelReferencedRunsAdminMixin``: cancelling in the admin of a model that refers to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.utils import unquote
from django.core.checks import CheckMessage, Error
from django.core.exceptions import FieldDoesNotExist
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy, ngettext

from django_run_cancel.admin.base import STYLES, AnyModelAdmin
from django_run_cancel.admin.columns import shown
from django_run_cancel.admin.forms import too_many
from django_run_cancel.admin.mixins import CancelRunsAdminMixin
from django_run_cancel.cancellation.arguments import MAX_RUN_ID_LENGTH, MAX_RUN_IDS
from django_run_cancel.models import get_run_model
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import ACTIVE


class CancelReferencedRunsAdminMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Adds cancelling to the ``ModelAdmin`` of a model whose rows each refer to a run.

    The action "Cancel the runs of selected …" and a button on the page of a row, for users who may
    view and cancel runs. Put it before ``ModelAdmin``. Both lead to the page of the run model's own
    ``ModelAdmin`` that asks, so that users cancel only runs which they find there.

    Attributes:
        run_field: Name of the field that refers to the run: a foreign key, a one-to-one field, or
            a field that has the ``run_id``.
    """

    actions: Any
    change_form_template: Any = "admin/django_run_cancel/change_form_reference.html"
    run_field = "run"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Beside the actions that the host lists, unless it wants none.
        if self.actions is not None:
            self.actions = [*self.actions, "cancel_selected"]

    @property
    def media(self) -> forms.Media:
        """Return the scripts and styles of the pages; not as a class, which the host may have."""
        media: forms.Media = super().media
        return media + forms.Media(css=STYLES)

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check also that the field exists, and that runs have a page that asks."""
        errors: list[CheckMessage] = super().check(**kwargs)
        try:
            self.opts.get_field(self.run_field)
        except FieldDoesNotExist:
            errors.append(
                Error(
                    f"{self.opts.label} has no field {self.run_field!r}.",
                    hint="Set run_field to the name of the field that refers to the run.",
                    obj=type(self),
                    id="django_run_cancel.E019",
                )
            )
        if self._run_admin is None:
            errors.append(
                Error(
                    "The admin site has no page that cancels runs.",
                    hint="Register the run model with RunAdmin or CancelRunsAdminMixin there.",
                    obj=type(self),
                    id="django_run_cancel.E020",
                )
            )
        return errors

    @property
    def _run_admin(self) -> Any:
        try:
            run_admin = self.admin_site.get_model_admin(get_run_model())
        except NotRegistered:
            return None
        return run_admin if isinstance(run_admin, CancelRunsAdminMixin) else None

    def has_cancel_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the user may use the page that asks before runs are cancelled."""
        run_admin = self._run_admin
        return bool(
            run_admin
            and run_admin.has_view_permission(request)
            and run_admin.has_cancel_permission(request)
        )

    @admin.action(
        permissions=["cancel"],
        description=gettext_lazy("Cancel the runs of selected %(verbose_name_plural)s"),
    )
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask before the runs of the selected rows are cancelled."""
        rows = queryset.order_by("pk").values_list(self._run_id_lookup, flat=True)
        found = list(rows[: MAX_RUN_IDS + 1])
        if len(found) > MAX_RUN_IDS:
            self.message_user(request, too_many(), messages.ERROR)
            return None
        # What cannot be the id of a run stands for none.
        texts = ["" if run_id is None else str(run_id) for run_id in found]
        run_ids = [text for text in texts if text and is_storable(text, MAX_RUN_ID_LENGTH)]
        if without := len(found) - len(run_ids):
            text = ngettext(
                "%(count)s of the selected rows has no run.",
                "%(count)s of the selected rows have no run.",
                without,
            )
            self.message_user(request, text % {"count": shown(without)}, messages.WARNING)
        if not run_ids:
            return None
        distinct = list(dict.fromkeys(run_ids))
        page: HttpResponse = self._run_admin._ask(
            request, "cancel", distinct, request.get_full_path()
        )
        return page

    # Django 6.1 and newer: in the list and on the page of a row.
    cancel_selected.locations = list(getattr(admin, "ActionLocation", ()))  # type: ignore[attr-defined]

    @property
    def _run_id_lookup(self) -> str:
        is_relation = self.opts.get_field(self.run_field).is_relation
        return f"{self.run_field}__run_id" if is_relation else self.run_field

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show a row, with the button when its run can be cancelled."""
        run = self._referenced_run(request, object_id)
        button = self.has_cancel_permission(request) and self._run_admin._url("cancel")
        context = {
            **(extra_context or {}),
            "referenced_run": run,
            "cancel_url": button,
            "active_statuses": ACTIVE,
            "back_url": request.get_full_path(),
        }
        page: HttpResponse = super().change_view(request, object_id, form_url, context)
        return page

    def _referenced_run(self, request: HttpRequest, object_id: str) -> Any:
        """Return the run of a row, if there is one and the user may view it."""
        run_admin = self._run_admin
        if not (run_admin and run_admin.has_view_permission(request)):
            return None
        row = self.get_object(request, unquote(object_id))
        value = row and getattr(row, self.run_field)
        run_id = getattr(value, "run_id", value)
        if not run_id or not is_storable(str(run_id), MAX_RUN_ID_LENGTH):
            return None
        return run_admin.get_queryset(request).filter(run_id=str(run_id)).first()

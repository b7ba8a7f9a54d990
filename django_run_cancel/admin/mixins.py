"""``CancelRunsAdminMixin``: the action and the buttons that cancel runs."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_run_cancel.admin.bulk import BulkMixin
from django_run_cancel.admin.confirm import Page
from django_run_cancel.admin.forms import too_many
from django_run_cancel.admin.kill import why_not_killed
from django_run_cancel.admin.run_page import RunPageMixin
from django_run_cancel.cancellation.arguments import MAX_RUN_ID_LENGTH, MAX_RUN_IDS
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import ACTIVE, StopState

MAX_KEY_LENGTH = 255


class CancelRunsAdminMixin(BulkMixin, RunPageMixin):
    """Adds cancelling to the ``ModelAdmin`` of a run model.

    The action "Cancel selected runs", a button on the run's page, and the pages that they lead to,
    for users with the permission ``cancel_run``; with ``force_cancel_run`` too, also an action and
    a button that kill runs which are still stopping. Put it before ``ModelAdmin``. It cancels only
    runs of ``get_queryset()``, and their descendants.
    """

    actions: Any
    change_form_template: Any = "admin/django_run_cancel/change_form.html"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Beside the actions that the host lists, unless it wants none.
        if self.actions is not None:
            self.actions = [*self.actions, "cancel_selected", "kill_selected"]

    def get_urls(self) -> list[Any]:
        """Return the pages: also that which asks before it cancels, and the way to a run's."""
        views = {
            "cancel": path("cancel/", self.admin_site.admin_view(self.cancel_view)),
            "cancel_all": path("cancel-all/", self.admin_site.admin_view(self.cancel_all_view)),
            "kill": path("kill/", self.admin_site.admin_view(self.kill_view)),
            "by_run_id": path("by-run-id/", self.admin_site.admin_view(self.by_run_id_view)),
        }
        for name, pattern in views.items():
            pattern.name = self._name(name)
        return [*views.values(), *super().get_urls()]

    def url_of_run(self, run_id: str) -> str:
        """Return the address that leads to the page of a run."""
        return f"{self._url('by_run_id')}?{urlencode({'run_id': run_id})}"

    def link_to_run(self, run_id: str) -> Any:
        """Return a link to the page of a run."""
        return format_html('<a href="{}">{}</a>', self.url_of_run(run_id), run_id)

    def by_run_id_view(self, request: HttpRequest) -> HttpResponse:
        """Go on to the page of the run with the id in ``run_id``.

        Raises:
            PermissionDenied: The user may not look at runs; not even whether an id exists.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        run_id = request.GET.get("run_id", "")
        runs = self.get_queryset(request)
        # A text that no database can hold is the id of no run.
        found = is_storable(run_id, MAX_RUN_ID_LENGTH) and runs.filter(run_id=run_id).first()
        if not found:
            gone: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.opts, run_id)
            return gone
        return HttpResponseRedirect(self._url("change", quote(found.pk)))

    def render_change_form(
        self,
        request: HttpRequest,
        context: Any,
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        """Show a run, with a button when it can be cancelled, or killed."""
        may_cancel = self.has_cancel_permission(request)
        context |= {"cancel_url": may_cancel and self._url("cancel"), "active_statuses": ACTIVE}
        is_stopping = obj is not None and obj.stop_state == StopState.STOPPING
        if is_stopping and self.has_kill_permission(request):
            if reason := why_not_killed(obj):
                context["kill_note"] = reason
            else:
                context["kill_url"] = self._url("kill")
        page: HttpResponse = super().render_change_form(
            request, context, add, change, form_url, obj
        )
        return page

    def response_action(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Run an action on the rows that were ticked."""
        pk = self.opts.pk
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                if not is_storable(key, MAX_KEY_LENGTH):
                    raise ValidationError(key)
                pk.run_validators(pk.to_python(key))
        except ValidationError:
            # Django would look for it all the same, and fail.
            self.message_user(request, _("There are no such runs."), messages.ERROR)
            return None
        return super().response_action(request, *args, **kwargs)

    @admin.action(
        permissions=["cancel"],
        description=gettext_lazy("Cancel selected %(verbose_name_plural)s"),
    )
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask before the selected runs are cancelled."""
        if request.POST.get("select_across") == "1":
            # On a page with an address, so that it can be looked at again.
            query = request.GET.urlencode()
            return HttpResponseRedirect(self._url("cancel_all") + (query and f"?{query}"))
        return self._ask_about_selected(request, "cancel", queryset)

    @admin.action(
        permissions=["kill"],
        description=gettext_lazy("Kill selected %(verbose_name_plural)s now"),
    )
    def kill_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask before the selected runs are cancelled by force, or killed if they still stop."""
        return self._ask_about_selected(request, "kill", queryset)

    def _ask_about_selected(
        self, request: HttpRequest, page: Page, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        run_ids = list(queryset.order_by("pk").values_list("run_id", flat=True)[: MAX_RUN_IDS + 1])
        if len(run_ids) > MAX_RUN_IDS:
            self.message_user(request, too_many(), messages.ERROR)
            return None
        return self._ask(request, page, run_ids, request.get_full_path())

"""API keys in the admin: created, shown once, revoked."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_run_cancel.admin.base import STYLES, AnyModelAdmin, FewLookupsMixin, searched
from django_run_cancel.admin.columns import age, shown
from django_run_cancel.admin.worker import WorkerWarningMixin, warn_of_worker
from django_run_cancel.models import ApiKey

# Not in the model: each change of a text would be a migration.
HELP_TEXTS = {
    "name": gettext_lazy("Who uses the key. Cancellations record it as who asked."),
    "tenant": gettext_lazy(
        "The key reaches the runs of exactly this tenant, and no others. Left blank, it reaches "
        "the runs that have no tenant: not the runs of all tenants."
    ),
    "read_only": gettext_lazy("The key lists and reads runs. It cancels none."),
    "expires_at": gettext_lazy("When the key stops working. Left blank, it works until revoked."),
}


@admin.register(ApiKey)
class ApiKeyAdmin(WorkerWarningMixin, FewLookupsMixin, AnyModelAdmin):
    """API keys. What a key may do is settled when it is created."""

    class Media:
        css: ClassVar[Any] = STYLES
        js = ("django_run_cancel/new_key.js",)

    list_display = ("name", "prefix", "tenant", "access", "created", "last_used")
    list_filter = ("read_only",)
    search_fields = ("prefix", "name", "tenant")
    ordering = ("-created_at",)
    actions = ("revoke",)
    fields = ("name", "tenant", "read_only", "expires_at")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return what there is to choose or, of a key that exists, what there is to see."""
        if obj is None:
            return self.fields
        return (*self.fields, "prefix", "state_label", "created_at", "revoked_at", "last_used_at")

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        """Return the form, in which each field is explained."""
        return super().get_form(request, obj, change, **{"help_texts": HELP_TEXTS, **kwargs})

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Allow nothing but the name to be changed."""
        return [name for name in self.get_fields(request, obj) if obj and name != "name"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find keys by a part of the name, or by the prefix or the tenant."""
        term = search_term.strip()
        condition = Q(name__icontains=term) | Q(prefix=term) | Q(tenant=term)
        return searched(queryset, condition, term)

    @admin.display(description=gettext_lazy("state"))
    def state_label(self, row: ApiKey) -> Any:
        """Return whether the key works."""
        return row.state.label

    @admin.display(description=gettext_lazy("state"))
    def access(self, row: ApiKey) -> Any:
        """Return whether the key works, and whether it only reads."""
        return f"{row.state.label}, {_('read only')}" if row.read_only else row.state.label

    @admin.display(description=gettext_lazy("age"), ordering="created_at")
    def created(self, row: ApiKey) -> Any:
        """Return how long ago the key was created."""
        return age(row.created_at)

    @admin.display(description=gettext_lazy("last used"), ordering="last_used_at")
    def last_used(self, row: ApiKey) -> Any:
        """Return how long ago the key was used."""
        return age(row.last_used_at) if row.last_used_at else "-"

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save a key, and generate a new one."""
        if not change:
            request.new_api_key = obj.set_key()  # type: ignore[attr-defined]  # ours, for the next page
        super().save_model(request, obj, form, change)

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the key. It is in no message and no session, which would keep it."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "title": _("The new API key"),
            "row": obj,
            "key": request.new_api_key,  # type: ignore[attr-defined]  # set in save_model()
        }
        warn_of_worker(self, request)
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/django_run_cancel/new_key.html", context)

    @admin.action(
        permissions=["change"],
        description=gettext_lazy("Revoke selected %(verbose_name_plural)s"),
    )
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        """Ask, and then stop keys from working, at once and for good."""
        rows = list(queryset.filter(revoked_at=None))
        if rows and "confirmed" not in request.POST:
            context = {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "media": self.media,
                "title": ngettext("Revoke this API key?", "Revoke these API keys?", len(rows)),
                "rows": rows,
                "selected": ACTION_CHECKBOX_NAME,
            }
            warn_of_worker(self, request)
            request.current_app = self.admin_site.name
            return TemplateResponse(request, "admin/django_run_cancel/revoke.html", context)
        for row in rows:
            row.revoke()
        user: Any = request.user  # not anonymous
        LogEntry.objects.log_actions(user.pk, rows, CHANGE, _("Revoked."))
        text = ngettext(
            "%(count)s key no longer works.", "%(count)s keys no longer work.", len(rows)
        )
        level = messages.SUCCESS if rows else messages.WARNING
        self.message_user(request, text % {"count": shown(len(rows))}, level)
        return None

"""Permissions, and the querysets of runs and cancellations that a request may access."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.utils.module_loading import import_string
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from django_run_cancel.conf import settings
from django_run_cancel.models import ApiKey, Cancellation, get_run_model

if TYPE_CHECKING:
    from rest_framework.views import APIView


class MayCancelRuns(BasePermission):
    """API keys may read and, unless they are read-only, cancel. Users need a model permission.

    ``cancel_run`` of the run model lets users read and cancel; ``view_…`` only read.
    """

    message = "You may not do this"

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Tell whether the request is allowed; the views' querysets restrict it to certain rows."""
        is_read = request.method in SAFE_METHODS
        if isinstance(request.auth, ApiKey):
            return is_read or not request.auth.read_only
        # With UNAUTHENTICATED_USER = None, ``request.user`` is None.
        if not (request.user and request.user.is_authenticated):
            return False
        meta = get_run_model()._meta
        allowed = request.user.has_perm(f"{meta.app_label}.cancel_run")
        return allowed or (
            is_read and request.user.has_perm(f"{meta.app_label}.view_{meta.model_name}")
        )


def may_force(request: Request) -> bool:
    """Tell whether a request may use force: with an API key, or as a user with the permission."""
    permission = f"{get_run_model()._meta.app_label}.force_cancel_run"
    return isinstance(request.auth, ApiKey) or request.user.has_perm(permission)


def visible_runs(request: Request) -> QuerySet[Any]:
    """Return the runs that a request may access, by ``RUN_CANCEL_SCOPE`` or ``default_scope()``."""
    runs = get_run_model()._default_manager.all()
    if settings.SCOPE:
        scoped: QuerySet[Any] = import_string(settings.SCOPE)(request, runs)
        return scoped
    return default_scope(request, runs)


def default_scope(request: Request, queryset: QuerySet[Any]) -> QuerySet[Any]:
    """Return the runs of the API key's tenant; all runs for a user."""
    if isinstance(request.auth, ApiKey):
        return queryset.filter(tenant=request.auth.tenant)
    return queryset


def visible_cancellations(request: Request) -> QuerySet[Cancellation]:
    """Return the cancellations that a request may read.

    These are those of the API key's tenant; all for a user. With ``RUN_CANCEL_SCOPE``, they are
    limited to the caller's own, as others could contain ids of runs outside of the scope.
    """
    cancellations = Cancellation.objects.all()
    if isinstance(request.auth, ApiKey):
        cancellations = cancellations.filter(tenant=request.auth.tenant)
        if settings.SCOPE:
            cancellations = cancellations.filter(requested_by=request.auth.label)
    elif settings.SCOPE:
        cancellations = cancellations.filter(user_id=str(request.user.pk))
    return cancellations

"""System checks, each with a hint that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.db.models import UniqueConstraint
from django.utils.module_loading import import_string

from django_run_cancel.conf import PREFIX, settings
from django_run_cancel.models import AbstractRun, Cancellation, get_run_model

REPEATABLE = {"repeatable read", "serializable"}


@register(Tags.models)
def check_run_model(**kwargs: Any) -> list[CheckMessage]:
    """Check that ``RUN_CANCEL_RUN_MODEL`` names a model that can be cancelled."""
    try:
        model = get_run_model()
    except (LookupError, ValueError, TypeError, AttributeError):
        return [
            Error(
                f"RUN_CANCEL_RUN_MODEL is {settings.RUN_MODEL!r}, which is no installed model.",
                hint="Set it to 'app_label.ModelName', and add that app to INSTALLED_APPS.",
                id="django_run_cancel.E001",
            )
        ]
    if not issubclass(model, AbstractRun):
        return [
            Error(
                f"{model._meta.label} cannot be a run model.",
                hint="Let it inherit from django_run_cancel.models.AbstractRun.",
                obj=model,
                id="django_run_cancel.E002",
            )
        ]
    return list(_check_run_meta(model))


def _check_run_meta(model: type[AbstractRun]) -> Iterator[CheckMessage]:
    unique = model._meta.get_field("run_id").unique or any(
        isinstance(constraint, UniqueConstraint) and tuple(constraint.fields) == ("run_id",)
        for constraint in model._meta.constraints
    )
    permissions = {codename for codename, _ in model._meta.permissions}
    if not unique or not {"cancel_run", "force_cancel_run"} <= permissions:
        yield Error(
            f"{model._meta.label} lacks the unique run_id or the permissions of a run model.",
            hint="Let its Meta inherit: class Meta(AbstractRun.Meta).",
            obj=model,
            id="django_run_cancel.E003",
        )


@register()
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Check that the settings are of their type, and that none is misspelt."""
    return [*_check_time_zones(), *_check_scope(), *_check_prefixes(), *_check_names()]


def _check_time_zones() -> Iterator[CheckMessage]:
    if not django_settings.USE_TZ:
        yield Error(
            "django-run-cancel needs time zone support.",
            hint="Set USE_TZ = True, which is Django's default.",
            id="django_run_cancel.E006",
        )


def _check_scope() -> Iterator[CheckMessage]:
    if settings.SCOPE is None:
        return
    try:
        found = import_string(settings.SCOPE)
    except (ImportError, AttributeError, TypeError):
        found = None
    if not callable(found):
        yield Error(
            f"RUN_CANCEL_SCOPE is {settings.SCOPE!r}, which cannot be imported and called.",
            hint="Set it to the dotted path of a function (request, queryset) -> queryset.",
            id="django_run_cancel.E004",
        )


def _check_prefixes() -> Iterator[CheckMessage]:
    prefixes = settings.ID_PREFIXES
    if not isinstance(prefixes, dict) or not all(
        isinstance(text, str) and 0 < len(text) <= 32 for pair in prefixes.items() for text in pair
    ):
        yield Error(
            "RUN_CANCEL_ID_PREFIXES must map run types to prefixes of up to 32 characters.",
            hint="For example: RUN_CANCEL_ID_PREFIXES = {'crawl': 'crl_'}.",
            id="django_run_cancel.E005",
        )


def _check_names() -> Iterator[CheckMessage]:
    known = settings.names()
    for name in dir(django_settings):
        if name.startswith(PREFIX) and name not in known:
            yield Warning(
                f"{name} is not a setting of django-run-cancel.",
                hint=f"The settings are: {', '.join(known)}.",
                id="django_run_cancel.W001",
            )


@register()
def check_databases(**kwargs: Any) -> list[CheckMessage]:
    """Check the settings of the database that holds the runs; it is not connected to."""
    try:
        alias = router.db_for_write(get_run_model())
        connection = connections[alias]
    except (LookupError, ValueError, TypeError, AttributeError, ImproperlyConfigured):
        return []  # reported by check_run_model, or by Django
    if router.db_for_write(Cancellation) != alias:
        return [
            Error(
                "Runs and their cancellations are routed to different databases, and cannot be "
                "written in one transaction.",
                hint=f"Let DATABASE_ROUTERS send the app django_run_cancel to {alias!r} too.",
                id="django_run_cancel.E007",
            )
        ]
    options = connection.settings_dict.get("OPTIONS", {})
    if connection.vendor == "sqlite" and options.get("transaction_mode") != "IMMEDIATE":
        return [
            Warning(
                "SQLite transactions that begin DEFERRED fail with 'database is locked' when "
                "several processes write.",
                hint=f"Set DATABASES[{connection.alias!r}]['OPTIONS']['transaction_mode'] = "
                "'IMMEDIATE'.",
                id="django_run_cancel.W002",
            )
        ]
    level = getattr(options.get("isolation_level"), "name", "")
    if connection.vendor == "postgresql" and level.replace("_", " ").lower() in REPEATABLE:
        return [
            Warning(
                f"With the isolation level {level} of PostgreSQL, a child that is created while "
                "its parent is being cancelled can escape.",
                hint="Leave isolation_level out of the OPTIONS of the database with the runs.",
                id="django_run_cancel.W003",
            )
        ]
    return []


@register()
def check_schema(**kwargs: Any) -> list[CheckMessage]:
    """Check that no setting of drf-spectacular changes the published contract."""
    chosen = getattr(django_settings, "SPECTACULAR_SETTINGS", {})
    return [
        Warning(
            f"SPECTACULAR_SETTINGS[{name!r}] changes the components of the cancel endpoint.",
            hint="Switch it off, or clients that are generated from your document will not fit.",
            id="django_run_cancel.W004",
        )
        for name in ("COMPONENT_SPLIT_REQUEST", "ENFORCE_NON_BLANK_FIELDS", "CAMELIZE_NAMES")
        if chosen.get(name)
    ]

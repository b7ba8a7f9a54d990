"""System checks, each with a hint that says what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.db.models import Q, UniqueConstraint
from django.utils.module_loading import import_string

from django_run_cancel.backends import get_backend
from django_run_cancel.conf import PREFIX, settings
from django_run_cancel.models import AbstractRun, Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import Delivery

MAX_NUMBER = 1e9
"""Seconds beyond which dates and waiting have an end."""

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
    return [
        *_check_time_zones(),
        *_check_scope(),
        *_check_prefixes(),
        *_check_handlers(),
        *_check_numbers(),
        *_check_names(),
    ]


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
    if not _is_callable(settings.SCOPE):
        yield Error(
            f"RUN_CANCEL_SCOPE is {settings.SCOPE!r}, which cannot be imported and called.",
            hint="Set it to the dotted path of a function (request, queryset) -> queryset.",
            id="django_run_cancel.E004",
        )


def _is_callable(path: Any) -> bool:
    try:
        return callable(import_string(path))
    except (ImportError, AttributeError, TypeError):
        return False


def _check_handlers() -> Iterator[CheckMessage]:
    handlers = settings.HANDLERS
    if not isinstance(handlers, list | tuple) or not all(map(_is_callable, handlers)):
        yield Error(
            f"RUN_CANCEL_HANDLERS is {handlers!r}, which are not all functions.",
            hint="Set it to a list of dotted paths of functions (item) -> None.",
            id="django_run_cancel.E009",
        )


def _check_numbers() -> Iterator[CheckMessage]:
    seconds = ["POLL_SECONDS", "HEARTBEAT_SECONDS", "GRACE_SECONDS", "PRESUME_SECONDS"]
    if settings.STALLED_SECONDS is not None:
        seconds.append("STALLED_SECONDS")
    wrong = [name for name in seconds if not _is_positive(getattr(settings, name), int | float)]
    if not _is_positive(settings.MAX_ATTEMPTS, int):
        wrong.append("MAX_ATTEMPTS")
    for name in wrong:
        yield Error(
            f"{PREFIX}{name} must be a number above 0, and finite.",
            hint=f"The default is {vars(type(settings))[name]}.",
            id="django_run_cancel.E012",
        )
    if wrong:
        return
    if settings.PRESUME_SECONDS <= settings.GRACE_SECONDS:
        yield Warning(
            "Runs are presumed to have stopped before they are stopped by force.",
            hint="Set RUN_CANCEL_PRESUME_SECONDS above RUN_CANCEL_GRACE_SECONDS.",
            id="django_run_cancel.W008",
        )
    beat = settings.HEARTBEAT_SECONDS
    if settings.STALLED_SECONDS is not None and 2 * beat > settings.STALLED_SECONDS:
        yield Warning(
            "Healthy runs can time out between two signs of life.",
            hint="Set RUN_CANCEL_STALLED_SECONDS to several RUN_CANCEL_HEARTBEAT_SECONDS.",
            id="django_run_cancel.W009",
        )


def _is_positive(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < MAX_NUMBER


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
    if settings.LISTEN and connection.vendor == "postgresql" and not _uses_psycopg_3():
        return [
            Warning(
                "RUN_CANCEL_LISTEN needs psycopg 3; without it, running code only polls.",
                hint="Type: pip install 'psycopg[binary]'",
                id="django_run_cancel.W010",
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


def _uses_psycopg_3() -> bool:
    from django.db.backends.postgresql import psycopg_any  # nobody else has the driver

    return bool(psycopg_any.is_psycopg3)


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


@register()
def check_backends(**kwargs: Any) -> list[CheckMessage]:
    """Check that each backend can be made, and what it checks itself; nothing is connected to."""
    if not isinstance(settings.BACKENDS, dict):
        return [_cannot_be_made("RUN_CANCEL_BACKENDS is no dictionary.")]
    messages: list[CheckMessage] = []
    for alias in settings.BACKENDS:
        try:
            messages += get_backend(alias).check(**kwargs)
        except Exception as error:  # noqa: BLE001 - whatever importing it may raise
            messages.append(_cannot_be_made(f"The backend {alias!r} cannot be made: {error!r}."))
    return messages


def _cannot_be_made(problem: str) -> Error:
    return Error(
        problem,
        hint="RUN_CANCEL_BACKENDS = {'name': {'BACKEND': 'dotted.path', 'OPTIONS': {…}}}. Missing "
        "packages come with: pip install 'django-run-cancel[celery]', or another extra.",
        id="django_run_cancel.E008",
    )


@register(deploy=True)
def check_deployed_backends(**kwargs: Any) -> list[CheckMessage]:
    """Check that the executors answer."""
    known = check_backends(**kwargs)
    return [found for found in check_backends(**kwargs, deploy=True) if found not in known]


@register(deploy=True)
def check_failed_deliveries(
    *, databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check, if ``check --deploy`` may read the database, whether deliveries have failed."""
    alias = router.db_for_write(CancellationItem)
    if alias not in (databases or ()):
        return []
    failed = Q(delivery=Delivery.FAILED) | Q(handling=Delivery.FAILED)
    count = CancellationItem.objects.using(alias).filter(failed).count()
    if not count:
        return []
    return [
        Warning(
            f"{count} cancelled runs have not been delivered to their executor, or not handled.",
            hint="See last_error and handling_error of these items, then: "
            "python manage.py retry_deliveries",
            id="django_run_cancel.W007",
        )
    ]

"""System checks of the settings, the run model, the backends and the deliveries."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections, router
from django.db.models import Q, UniqueConstraint
from django.utils.module_loading import import_string

from django_run_cancel.backends import get_backend
from django_run_cancel.conf import PREFIX, settings
from django_run_cancel.delivery.lateness import find_lateness, find_unknown_backends
from django_run_cancel.models import AbstractRun, CancellationItem, get_run_model
from django_run_cancel.models.database_checks import check_databases  # noqa: F401 - registers it
from django_run_cancel.states import Delivery

MAX_NUMBER = 1e9
"""Upper limit of all numbers: with more seconds, dates and timeouts overflow."""


@register(Tags.models)
def check_run_model(**kwargs: Any) -> list[CheckMessage]:
    """Check that ``RUN_CANCEL_RUN_MODEL`` names a model that can be cancelled."""
    try:
        model = get_run_model()
    except (LookupError, ValueError, TypeError, AttributeError):
        return [
            Error(
                f"RUN_CANCEL_RUN_MODEL is {settings.RUN_MODEL!r}, which is not an installed model.",
                hint="Set it to 'app_label.ModelName', and add that app to INSTALLED_APPS.",
                id="django_run_cancel.E001",
            )
        ]
    if not issubclass(model, AbstractRun):
        return [
            Error(
                f"{model._meta.label} does not inherit from AbstractRun.",
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
            hint="Declare its Meta as: class Meta(AbstractRun.Meta).",
            obj=model,
            id="django_run_cancel.E003",
        )
    # With multi-table inheritance, the indexes are those of the base with the status column.
    table = model._meta.get_field("status").model
    present = {tuple(index.fields) for index in table._meta.indexes}
    missing = [
        index.fields for index in AbstractRun._meta.indexes if tuple(index.fields) not in present
    ]
    if missing:
        names = ", ".join("(" + ", ".join(fields) + ")" for fields in missing)
        yield Warning(
            f"{model._meta.label} lacks indexes of a run model: {names}.",
            hint="Declare its Meta as: class Meta(AbstractRun.Meta). If it has indexes of its "
            "own: indexes = [*AbstractRun.Meta.indexes, …]. Then make migrations.",
            obj=model,
            id="django_run_cancel.W012",
        )


@register()
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Check the types of the settings, and that no name is misspelt."""
    return [
        *_check_time_zones(),
        *_check_scope(),
        *_check_prefixes(),
        *_check_handlers(),
        *_check_tracking(),
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
            f"RUN_CANCEL_HANDLERS is {handlers!r}, which is not a list of functions.",
            hint="Set it to a list of dotted paths of functions (item) -> None.",
            id="django_run_cancel.E009",
        )


def _check_tracking() -> Iterator[CheckMessage]:
    patterns = settings.TRACK
    if not isinstance(patterns, list | tuple) or not all(
        isinstance(each, str) for each in patterns
    ):
        yield Error(
            f"RUN_CANCEL_TRACK is {patterns!r}, which is not a list of patterns.",
            hint='For example: RUN_CANCEL_TRACK = ["shop.tasks.*"].',
            id="django_run_cancel.E017",
        )
    if settings.DESCRIBE is not None and not _is_callable(settings.DESCRIBE):
        yield Error(
            f"RUN_CANCEL_DESCRIBE is {settings.DESCRIBE!r}, which cannot be imported and called.",
            hint="Set it to the dotted path of a function (name, args, kwargs) -> dict.",
            id="django_run_cancel.E018",
        )


def _check_numbers() -> Iterator[CheckMessage]:
    seconds = ["POLL_SECONDS", "HEARTBEAT_SECONDS", "GRACE_SECONDS", "PRESUME_SECONDS"]
    if settings.STALLED_SECONDS is not None:
        seconds.append("STALLED_SECONDS")
    kinds: dict[str, tuple[Any, str]] = dict.fromkeys(seconds, (int | float, "finite"))
    for name in ("MAX_ATTEMPTS", "MAX_TREE", "MAX_LOCK_MS", "MAX_BULK"):
        kinds[name] = (int, "whole")
    wrong = [name for name in kinds if not _is_positive(getattr(settings, name), kinds[name][0])]
    for name in wrong:
        yield Error(
            f"{PREFIX}{name} must be a {kinds[name][1]} number above 0.",
            hint=f"The default is {vars(type(settings))[name]}.",
            id="django_run_cancel.E012",
        )
    if wrong:
        return
    if settings.PRESUME_SECONDS <= settings.GRACE_SECONDS:
        yield Warning(
            "Runs are presumed stopped before their executors are told to kill them.",
            hint="Set RUN_CANCEL_PRESUME_SECONDS above RUN_CANCEL_GRACE_SECONDS.",
            id="django_run_cancel.W008",
        )
    beat = settings.HEARTBEAT_SECONDS
    if settings.STALLED_SECONDS is not None and 2 * beat > settings.STALLED_SECONDS:
        yield Warning(
            "Healthy runs can time out between two heartbeats.",
            hint="Set RUN_CANCEL_STALLED_SECONDS to several times RUN_CANCEL_HEARTBEAT_SECONDS.",
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


@register(deploy=True)
def check_schema(**kwargs: Any) -> list[CheckMessage]:
    """Check that no setting of drf-spectacular changes the published contract."""
    chosen = getattr(django_settings, "SPECTACULAR_SETTINGS", {})
    return [
        Warning(
            f"SPECTACULAR_SETTINGS[{name!r}] changes the components of the cancel endpoint.",
            hint="This changes no request and no answer. For people who generate clients, serve a "
            f"second document: SpectacularAPIView.as_view(custom_settings={{{name!r}: False}}). "
            "Otherwise set SILENCED_SYSTEM_CHECKS = ['django_run_cancel.W004'].",
            id="django_run_cancel.W004",
        )
        for name in ("COMPONENT_SPLIT_REQUEST", "ENFORCE_NON_BLANK_FIELDS", "CAMELIZE_NAMES")
        if chosen.get(name)
    ]


@register()
def check_backends(**kwargs: Any) -> list[CheckMessage]:
    """Instantiate each backend and run its own checks, without network connections."""
    if not isinstance(settings.BACKENDS, dict):
        return [_cannot_be_made("RUN_CANCEL_BACKENDS is not a dictionary.")]
    messages: list[CheckMessage] = []
    for alias in settings.BACKENDS:
        try:
            messages += get_backend(alias).check(**kwargs)
        except Exception as error:  # noqa: BLE001 - whatever importing it may raise
            messages.append(_cannot_be_made(f"The backend {alias!r} cannot be created: {error!r}."))
    return messages


def _cannot_be_made(problem: str) -> Error:
    return Error(
        problem,
        hint="Write RUN_CANCEL_BACKENDS = {'name': {'BACKEND': 'dotted.path', 'OPTIONS': {…}}}. If "
        "a package is missing, install its extra: pip install 'django-run-cancel[celery]'.",
        id="django_run_cancel.E008",
    )


@register(deploy=True)
def check_deployed_backends(**kwargs: Any) -> list[CheckMessage]:
    """Check that the executors can be reached."""
    offline_messages = check_backends(**kwargs)
    messages = check_backends(**kwargs, deploy=True)
    return [message for message in messages if message not in offline_messages]


@register(deploy=True)
def check_deliveries(
    *, databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn of deliveries that fail or wait, if ``check --deploy`` is given ``--database``."""
    alias = router.db_for_write(CancellationItem)
    if alias not in (databases or ()):
        return []
    if CancellationItem._meta.db_table not in connections[alias].introspection.table_names():
        return []  # before the first migrate
    return [*_check_failed_deliveries(alias), *_check_lateness(), *_check_unknown_backends()]


def _check_failed_deliveries(alias: str) -> Iterator[CheckMessage]:
    failed = Q(delivery=Delivery.FAILED) | Q(handling=Delivery.FAILED)
    if count := CancellationItem.objects.using(alias).filter(failed).count():
        yield Warning(
            f"Deliveries to executors or handlers that failed after all attempts: {count}.",
            hint="Remove the cause, which last_error or handling_error of these items says. Then "
            "run: python manage.py retry_deliveries",
            id="django_run_cancel.W007",
        )


def _check_lateness() -> Iterator[CheckMessage]:
    if late := find_lateness():
        minutes = late.duration // timedelta(minutes=1)
        yield Warning(
            f"The delivery worker is {minutes} minutes late with a {late.overdue.value}.",
            hint="Start it: python manage.py deliver_cancellations",
            id="django_run_cancel.W013",
        )


def _check_unknown_backends() -> Iterator[CheckMessage]:
    for alias, count in find_unknown_backends().items():
        yield Warning(
            f"Deliveries that wait for the backend {alias!r}, which is not in "
            f"RUN_CANCEL_BACKENDS: {count}.",
            hint="Add it again, and restart the delivery worker. Deliveries that have failed "
            "meanwhile are repeated by: python manage.py retry_deliveries",
            id="django_run_cancel.W015",
        )

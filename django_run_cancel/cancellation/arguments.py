"""Validates the arguments of ``cancel_runs`` and converts them to fields of a Cancellation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.db.models import Model, QuerySet

from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import Source

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

MAX_RUN_IDS = 1_000
"""Maximum number of ids in one call, which limits how long its transaction holds locks."""

MAX_REASON_LENGTH = 2_000
MAX_LABEL_LENGTH = 255
MAX_RUN_ID_LENGTH = 64
MAX_TENANT_LENGTH = 64
MAX_KEY_LENGTH = 255


def checked_ids(run_ids: Iterable[str]) -> list[str]:
    """Return the ids of a call without duplicates.

    Raises:
        TypeError: ``run_ids`` is a single string, or an element is not a string.
        ValueError: There are more than ``MAX_RUN_IDS`` ids.
    """
    asked = unique_ids(run_ids)
    if len(asked) > MAX_RUN_IDS:
        raise ValueError(f"run_ids must hold at most {MAX_RUN_IDS} ids, not {len(asked)}.")
    return asked


def unique_ids(run_ids: Iterable[str]) -> list[str]:
    """Return any number of ids without duplicates.

    Raises:
        TypeError: ``run_ids`` is a single string, or an element is not a string.
    """
    if isinstance(run_ids, str):
        raise TypeError("run_ids must be a list of ids, not a single string.")
    asked = list(dict.fromkeys(run_ids))
    for run_id in asked:
        if not isinstance(run_id, str):
            raise TypeError(f"run_ids must hold strings, not {type(run_id).__name__}.")
    return asked


def check_scope(runs: QuerySet[Any], model: type[Model]) -> None:
    """Refuse a queryset of another model, whose keys would be taken for those of runs.

    Raises:
        TypeError: It is not of the run model, nor of a subclass.
    """
    if not issubclass(runs.model, model):
        label = runs.model._meta.label
        raise TypeError(f"runs must be a queryset of {model._meta.label}, not of {label}.")


def record_fields(
    asked: Any,
    *,
    requested_by: str | AbstractBaseUser | AnonymousUser,
    tenant: str | None,
    source: str,
    origin: Origin,
    reason: str,
    force: bool,
    idempotency_key: str | None,
) -> dict[str, Any]:
    """Return the fields of a Cancellation that do not depend on the runs.

    ``asked`` is the list of ids that ``checked_ids`` returns, or another selection as JSON values.
    The other arguments are those of ``cancel_runs``.

    Raises:
        ValueError: An argument is too long, blank or cannot be stored.
    """
    if not is_storable(reason, MAX_REASON_LENGTH):
        raise ValueError(
            f"reason must be text of at most {MAX_REASON_LENGTH} characters, without NUL."
        )
    fields = {"source": Source(source), "reason": reason, "force": force, **asdict(origin)}
    if isinstance(requested_by, str):
        label = requested_by
    else:
        label = label_of_user(requested_by)
        fields["user_id"] = str(requested_by.pk)
    fields["requested_by"] = _checked_text("requested_by", label, MAX_LABEL_LENGTH)
    if tenant is not None:
        if not is_storable(tenant, MAX_TENANT_LENGTH):
            raise ValueError(
                f"tenant must be text of at most {MAX_TENANT_LENGTH} characters, without NUL."
            )
        fields["tenant"] = tenant
    if idempotency_key is not None:
        key = _checked_text("idempotency_key", idempotency_key, MAX_KEY_LENGTH)
        fields |= {"idempotency_key": key, "request_digest": _digest(asked, reason, force)}
    return fields


def label_of_user(user: AbstractBaseUser | AnonymousUser) -> str:
    """Return the text to record for a user: the username, or else ``user`` with the primary key.

    Blank for an anonymous user, who has neither.
    """
    name = str(user.get_username() or "").strip() or (f"user {user.pk}" if user.pk else "")
    return name[:MAX_LABEL_LENGTH]


def _checked_text(name: str, text: str, max_length: int) -> str:
    if not text.strip() or not is_storable(text, max_length):
        raise ValueError(
            f"{name} must be text of 1 to {max_length} characters, not blank and without NUL."
        )
    return text


def _digest(asked: Any, reason: str, force: bool) -> str:
    return hashlib.sha256(json.dumps([asked, reason, force]).encode()).hexdigest()

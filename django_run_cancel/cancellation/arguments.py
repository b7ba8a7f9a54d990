"""The arguments of ``cancel_runs``: what they may be, and the fields of the record they become."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import Source

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

MAX_RUN_IDS = 1_000
"""Ids per call: more would hold locks for longer than other clients should wait."""

MAX_REASON_LENGTH = 2_000
MAX_LABEL_LENGTH = 255
MAX_RUN_ID_LENGTH = 64
MAX_KEY_LENGTH = 255


def checked_ids(run_ids: Iterable[str]) -> list[str]:
    """Return the ids of a call, each once.

    Raises:
        TypeError: It is a single string, or holds something else than strings.
        ValueError: They are too many.
    """
    asked = unique_ids(run_ids)
    if len(asked) > MAX_RUN_IDS:
        raise ValueError(f"run_ids must hold at most {MAX_RUN_IDS} ids, not {len(asked)}.")
    return asked


def unique_ids(run_ids: Iterable[str]) -> list[str]:
    """Return any number of ids, each once.

    Raises:
        TypeError: It is a single string, or holds something else than strings.
    """
    if isinstance(run_ids, str):
        raise TypeError("run_ids must be a list of ids, not a single string.")
    asked = list(dict.fromkeys(run_ids))
    for run_id in asked:
        if not isinstance(run_id, str):
            raise TypeError(f"run_ids must hold strings, not {type(run_id).__name__}.")
    return asked


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
    """Return the fields of the record that are known before the runs are looked at.

    The arguments are those of ``cancel_runs``, with the ids as ``checked_ids`` returns them, or
    with another selection as JSON values.

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
        fields["tenant"] = tenant
    if idempotency_key is not None:
        key = _checked_text("idempotency_key", idempotency_key, MAX_KEY_LENGTH)
        fields |= {"idempotency_key": key, "request_digest": _digest(asked, reason, force)}
    return fields


def label_of_user(user: AbstractBaseUser | AnonymousUser) -> str:
    """Return what a user is recorded as: the name, or the key of one without a name.

    Blank for one without either, such as an anonymous user.
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

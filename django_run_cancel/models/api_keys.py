"""``ApiKey``: keys for the API. The database stores only a digest of each key."""

from __future__ import annotations

import hashlib
import logging
import secrets
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any, ClassVar, cast

from django.core.exceptions import ValidationError
from django.db import DatabaseError, connections, models, router, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.models.fields import ExactCharField, UnicodeCharField
from django_run_cancel.safe_text import describe_error, printable, printable_lines

TOUCH_INTERVAL = timedelta(minutes=1)
"""Minimum time between two updates of ``last_used_at``, which saves a write for each request."""

MAX_ERROR_LENGTH = 1_000

logger = logging.getLogger("django_run_cancel")

SCHEME = "rc_"
PREFIX_LENGTH = len(SCHEME) + 8


class KeyState(models.TextChoices):
    """Whether a key is valid."""

    WORKS = "works", _("works")
    EXPIRED = "expired", _("expired")
    REVOKED = "revoked", _("revoked")


class ApiKey(models.Model):
    """An API key, which gives access to the runs of one tenant."""

    name = UnicodeCharField(_("name"), max_length=100)
    prefix = ExactCharField(_("prefix"), max_length=16, editable=False)
    digest = ExactCharField(_("digest"), max_length=64, editable=False)
    tenant = ExactCharField(_("tenant"), max_length=64, blank=True, default="")
    read_only = models.BooleanField(_("read only"), default=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked at"), null=True, blank=True)
    last_used_at = models.DateTimeField(_("last used at"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["digest"], name="run_cancel_key_digest_unique"),
        ]

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """Text that is recorded as ``requested_by`` of requests with this key."""
        return f"{self.name} ({self.prefix})"

    @classmethod
    def issue(
        cls,
        name: str,
        *,
        tenant: str = "",
        read_only: bool = False,
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """Create a key.

        Args:
            name: Name, for users.
            tenant: Tenant whose runs the key gives access to.
            read_only: Whether requests with the key may only read.
            expires_at: Time of expiry, or None for never.

        Returns:
            The saved instance and the key itself, which cannot be read later.

        Raises:
            ValidationError: A value is invalid.
        """
        row = cls(name=name, tenant=tenant, read_only=read_only, expires_at=expires_at)
        key = row.set_key()
        row.full_clean()
        row.save(force_insert=True)
        return row, key

    def set_key(self) -> str:
        """Generate a key, set its prefix and digest on this unsaved instance, and return it."""
        key = SCHEME + secrets.token_urlsafe(32)
        self.prefix = key[:PREFIX_LENGTH]
        self.digest = digest(key)
        return key

    def clean(self) -> None:
        """Validate a new key.

        Raises:
            ValidationError: ``expires_at`` is in the past.
        """
        if self._state.adding and self.expires_at and self.expires_at <= timezone.now():
            raise ValidationError({"expires_at": _("This is in the past.")})

    @classmethod
    def authenticate(cls, key: str) -> ApiKey | None:
        """Return the ApiKey of a key, or None if it is unknown, expired or revoked.

        Makes one query by an index, and once in ``TOUCH_INTERVAL`` updates ``last_used_at``.
        """
        # Read from the primary database: a replica could lag behind a revocation.
        keys: Any = cls.objects.using(router.db_for_write(cls))
        found = keys.filter(digest=digest(key)).annotate(database_now=DatabaseNow())
        row: Any = next(iter(found), None)
        if row is None or row.revoked_at is not None:
            return None
        if row.expires_at is not None and row.expires_at <= row.database_now:
            return None
        row._record_use(row.database_now)
        return cast("ApiKey", row)

    def _record_use(self, now: datetime) -> None:
        stale = now - TOUCH_INTERVAL
        if self.last_used_at is not None and self.last_used_at > stale:
            return
        using = router.db_for_write(type(self))
        is_outdated = Q(last_used_at=None) | Q(last_used_at__lte=stale)
        rows = type(self).objects.using(using).filter(is_outdated, pk=self.pk)
        # In a transaction of the caller, an error needs a savepoint to not break that transaction.
        is_in_transaction = connections[using].in_atomic_block
        try:
            with transaction.atomic(using=using) if is_in_transaction else nullcontext():
                rows.update(last_used_at=now)
        except DatabaseError as error:  # a read-only database still serves requests
            shown = printable_lines(describe_error(error, MAX_ERROR_LENGTH))
            logger.warning("The use of %s cannot be noted: %s", printable(self.label), shown)
        self.last_used_at = now

    @property
    def state(self) -> KeyState:
        """Whether the key is valid, has expired or was revoked."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= timezone.now():
            return KeyState.EXPIRED
        return KeyState.WORKS

    def as_dict(self) -> dict[str, Any]:
        """Return the public attributes of the key as JSON values; times are in ISO 8601."""
        times = ("created_at", "expires_at", "revoked_at", "last_used_at")
        return {
            "name": self.name,
            "prefix": self.prefix,
            "tenant": self.tenant,
            "read_only": self.read_only,
            "state": self.state.value,
            **{name: (at := getattr(self, name)) and at.isoformat() for name in times},
        }

    def revoke(self) -> None:
        """Revoke the key, at once and permanently."""
        self.revoked_at = timezone.now()
        self.save(update_fields=["revoked_at"])


def digest(key: str) -> str:
    """Return the hexadecimal SHA-256 of a key.

    256 random bits need no slow or salted hash. Any header that a client may send can be hashed.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

"""API keys. Only a digest of each is stored; the key itself is shown once."""

from __future__ import annotations

import hashlib
import logging
import secrets
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import DatabaseError, connections, models, router, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.models.fields import ExactCharField, UnicodeCharField
from django_run_cancel.safe_text import describe_error, printable, printable_lines

TOUCH_INTERVAL = timedelta(minutes=1)
"""``last_used_at`` is at most this stale: a busy key does not write a row for each request."""

MAX_ERROR_LENGTH = 1_000

logger = logging.getLogger("django_run_cancel")

SCHEME = "rc_"
PREFIX_LENGTH = len(SCHEME) + 8


class KeyState(models.TextChoices):
    """Whether a key works."""

    WORKS = "works", _("works")
    EXPIRED = "expired", _("expired")
    REVOKED = "revoked", _("revoked")


class ApiKey(models.Model):
    """A key that acts for one tenant."""

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
        """Who a request with this key is recorded as having come from."""
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
            name: What people know it by.
            tenant: Whose runs it may touch.
            read_only: Whether it may only look.
            expires_at: When it stops working, or None for never.

        Returns:
            The stored row and the key itself, which cannot be had again.

        Raises:
            ValidationError: A value does not fit its column.
        """
        row = cls(name=name, tenant=tenant, read_only=read_only, expires_at=expires_at)
        key = row.set_key()
        row.full_clean()
        row.save(force_insert=True)
        return row, key

    def set_key(self) -> str:
        """Generate the key of a row that is not saved yet, and return it."""
        key = SCHEME + secrets.token_urlsafe(32)
        self.prefix = key[:PREFIX_LENGTH]
        self.digest = digest(key)
        return key

    def clean(self) -> None:
        """Check a new key.

        Raises:
            ValidationError: It would never work.
        """
        if self._state.adding and self.expires_at and self.expires_at <= timezone.now():
            raise ValidationError({"expires_at": _("This is in the past.")})

    @classmethod
    def authenticate(cls, key: str) -> ApiKey | None:
        """Return the key's row, or None when it is unknown, expired or revoked.

        One indexed query; a second statement, at most once a minute, notes that it was used.
        """
        # Not from a replica, which could lag behind a revocation.
        keys: Any = cls.objects.using(router.db_for_write(cls))
        keys = keys.annotate(database_now=DatabaseNow())
        has_not_expired = Q(expires_at=None) | Q(expires_at__gt=DatabaseNow())
        found = keys.filter(has_not_expired, digest=digest(key), revoked_at=None).first()
        if found is None:
            return None
        row: ApiKey = found
        row._note_use(found.database_now)
        return row

    def _note_use(self, now: datetime) -> None:
        stale = now - TOUCH_INTERVAL
        if self.last_used_at is not None and self.last_used_at > stale:
            return
        using = router.db_for_write(type(self))
        unnoted = Q(last_used_at=None) | Q(last_used_at__lte=stale)
        rows = type(self).objects.using(using).filter(unnoted, pk=self.pk)
        # Inside of a transaction, an error would end that.
        joined = connections[using].in_atomic_block
        try:
            with transaction.atomic(using=using) if joined else nullcontext():
                rows.update(last_used_at=now)
        except DatabaseError as error:  # read-only, as during maintenance: reading goes on
            shown = printable_lines(describe_error(error, MAX_ERROR_LENGTH))
            logger.warning("The use of %s cannot be noted: %s", printable(self.label), shown)
        self.last_used_at = now

    @property
    def state(self) -> KeyState:
        """Whether the key works."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= timezone.now():
            return KeyState.EXPIRED
        return KeyState.WORKS

    def as_dict(self) -> dict[str, Any]:
        """Return what may be known of the key as JSON values; times are in ISO 8601."""
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
        """Stop the key from working, at once and for good."""
        self.revoked_at = timezone.now()
        self.save(update_fields=["revoked_at"])


def digest(key: str) -> str:
    """Return the hexadecimal SHA-256 of a key.

    A plain hash is enough for 256 random bits, and takes any header that a client may send.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

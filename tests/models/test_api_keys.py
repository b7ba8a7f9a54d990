from __future__ import annotations

import re
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.models import ApiKey
from django_run_cancel.models.api_keys import KeyState
from tests.helpers import IS_SQLITE, refusing

pytestmark = pytest.mark.django_db


class TestApiKey:
    def test_is_stored_as_a_digest_only(self) -> None:
        row, key = ApiKey.issue("CI", tenant="acme")
        assert re.fullmatch(r"rc_[\w-]{43}", key)
        stored = [str(value) for value in ApiKey.objects.values_list().get()]
        assert not any(key[15:] in value for value in stored)
        assert str(row) == row.label == f"CI ({key[:11]})"

    def test_authenticate(self) -> None:
        row, key = ApiKey.issue("CI")
        assert ApiKey.authenticate(key) == row
        assert ApiKey.authenticate(key + "x") is None
        assert ApiKey.authenticate(key.swapcase()) is None

    def test_authenticate__revoked(self) -> None:
        row, key = ApiKey.issue("CI")
        row.revoke()
        assert ApiKey.authenticate(key) is None

    def test_authenticate__expired(self) -> None:
        now = timezone.now()
        row, key = ApiKey.issue("past", expires_at=now + timedelta(minutes=5))
        ApiKey.objects.filter(pk=row.pk).update(expires_at=now)
        assert ApiKey.authenticate(key) is None
        later = now + timedelta(minutes=5)
        assert ApiKey.authenticate(ApiKey.issue("future", expires_at=later)[1]) is not None

    def test_state(self) -> None:
        now = timezone.now()
        row = ApiKey.issue("CI")[0]
        assert row.state == KeyState.WORKS
        row.expires_at = now + timedelta(hours=1)
        assert row.state == KeyState.WORKS
        row.expires_at = now
        assert row.state == KeyState.EXPIRED
        row.revoke()
        assert row.state == KeyState.REVOKED

    def test_last_used_is_written_sparsely(self) -> None:
        row, key = ApiKey.issue("CI")
        assert statements_of(key) == ["SELECT", "UPDATE"]
        assert statements_of(key) == ["SELECT"]
        row.refresh_from_db()
        assert timezone.now() - row.last_used_at < timedelta(minutes=1)
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        ApiKey.objects.update(last_used_at=long_ago)
        assert statements_of(key) == ["SELECT", "UPDATE"]
        row.refresh_from_db()
        assert row.last_used_at > long_ago

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite's clock is that of its host")
    def test_clock_of_the_host_does_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = timezone.now()
        row, key = ApiKey.issue("CI", expires_at=before + timedelta(minutes=5))
        monkeypatch.setattr(timezone, "now", lambda: before + timedelta(minutes=10))
        assert ApiKey.authenticate(key) == row
        row.refresh_from_db()
        assert row.last_used_at - before < timedelta(minutes=1)
        assert statements_of(key) == ["SELECT"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_authenticate__where_its_use_cannot_be_noted(
    in_transaction: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a database that is read-only during maintenance."""
    row, key = ApiKey.issue("CI")
    maybe_atomic = transaction.atomic() if in_transaction else nullcontext()
    with refusing(ApiKey, "NEW.id > 0"), maybe_atomic:
        assert ApiKey.authenticate(key) == row
        assert ApiKey.objects.exists()
    assert "cannot be noted" in caplog.text
    row.refresh_from_db()
    assert row.last_used_at is None


def statements_of(key: str) -> list[str]:
    """Return the kinds of statements that authenticating takes, savepoints left out."""
    with CaptureQueriesContext(connection) as captured:
        assert ApiKey.authenticate(key) is not None
    kinds = [query["sql"].split()[0] for query in captured]
    return [kind for kind in kinds if kind in {"SELECT", "UPDATE"}]

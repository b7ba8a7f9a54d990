"""API keys in the admin: created, shown once, revoked."""

from __future__ import annotations

import re

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from django_run_cancel.models import ApiKey
from tests.admin.helpers import KEYS, logged_in, said, text, words

pytestmark = pytest.mark.django_db


def create(client: Client, **fields: str) -> str:
    """Create a key and return it."""
    page = text(client.post(f"{KEYS}add/", {"name": "CI", "tenant": "", **fields}))
    (key,) = re.findall(r'value="(rc_[^"]+)"', page)
    return str(key)


def test_is_shown_once_and_works(chief: Client) -> None:
    key = create(chief, tenant="acme", read_only="on")
    row = ApiKey.authenticate(key)
    assert row is not None
    assert (row.name, row.tenant, row.read_only) == ("CI", "acme", True)
    for url in (KEYS, f"{KEYS}{row.pk}/change/", f"{KEYS}{row.pk}/history/", "/admin/"):
        assert key not in text(chief.get(url))
    assert key not in str(dict(chief.session.items()))
    assert key not in str(chief.cookies)
    assert "CI" in str(LogEntry.objects.get())


def test_each_is_another(chief: Client) -> None:
    assert create(chief) != create(chief)


def test_one_that_would_never_work(chief: Client) -> None:
    fields = {"name": "CI", "expires_at_0": "2001-01-01", "expires_at_1": "00:00"}
    assert "This is in the past." in words(chief.post(f"{KEYS}add/", fields))
    assert not ApiKey.objects.exists()


def test_only_the_name_can_be_changed(chief: Client) -> None:
    key = create(chief, tenant="acme")
    row = ApiKey.objects.get()
    sent = {"name": "new", "tenant": "globex", "read_only": "on", "prefix": "rc_x", "digest": "x"}
    assert chief.post(f"{KEYS}{row.pk}/change/", sent).status_code == 302
    changed = ApiKey.authenticate(key)
    assert changed is not None
    assert (changed.name, changed.tenant, changed.read_only) == ("new", "acme", False)


def test_revoke(chief: Client) -> None:
    keys = [create(chief) for _ in range(3)]
    rows = [ApiKey.authenticate(key) for key in keys]
    assert rows[0] is not None
    rows[0].revoke()
    first_revoked_at = rows[0].revoked_at
    sent = {"action": "revoke", "_selected_action": [row.pk for row in rows[:2] if row]}
    page = words(chief.post(KEYS, sent))
    assert "Revoke this API key?" in page
    assert rows[1] is not None
    assert rows[1].label in page
    assert ApiKey.authenticate(keys[1]) is not None
    assert said(chief.post(KEYS, {**sent, "confirmed": "yes"})) == ["1 key no longer works."]
    assert [ApiKey.authenticate(key) is None for key in keys] == [True, True, False]
    assert ApiKey.objects.get(pk=rows[0].pk).revoked_at == first_revoked_at
    assert LogEntry.objects.filter(change_message="Revoked.").count() == 1
    assert "revoked" in words(chief.get(KEYS))
    assert said(chief.post(KEYS, sent)) == ["0 keys no longer work."]


def test_search(chief: Client) -> None:
    row, _ = ApiKey.issue("billing service", tenant="acme")
    ApiKey.issue("other")
    for words_of_name in ("ling serv", row.prefix, "acme", " billing "):
        assert list(chief.get(KEYS, {"q": words_of_name}).context["cl"].result_list) == [row]
    for term in ("service billing", "acm", row.digest, "a " * 3_000):
        assert not chief.get(KEYS, {"q": term}).context["cl"].result_list


def test_who_may_only_look_does_not_revoke() -> None:
    row, key = ApiKey.issue("CI")
    looker = logged_in("looker", "view_apikey")
    looker.post(KEYS, {"action": "revoke", "_selected_action": row.pk, "confirmed": "yes"})
    assert looker.post(f"{KEYS}add/", {"name": "x"}).status_code == 403
    assert ApiKey.authenticate(key) is not None


def test_tenants_are_explained(chief: Client) -> None:
    form = words(chief.get(f"{KEYS}add/"))
    assert "exactly this tenant, and no others. Left blank, it reaches the runs that have" in form
    fields = {"name": "CI", "tenant": "acme"}
    told = words(chief.post(f"{KEYS}add/", fields))
    assert "It reaches the runs of the tenant “acme”." in told
    assert "It cannot cancel." not in told
    told = words(chief.post(f"{KEYS}add/", {"name": "CI", "read_only": "on"}))
    assert "It reaches the runs without a tenant, and no others. It cannot cancel." in told
    assert "exactly this tenant" in words(
        chief.get(f"{KEYS}{ApiKey.objects.latest('pk').pk}/change/")
    )

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_run_cancel.models import ApiKey

pytestmark = pytest.mark.django_db


def run(*args: str, **options: Any) -> tuple[str, str]:
    """Return what a command wrote to standard output and to standard error."""
    out, err = StringIO(), StringIO()
    call_command(*args, stdout=out, stderr=err, **options)
    return out.getvalue(), err.getvalue()


class TestCreateApiKey:
    def test_prints_a_working_key_and_nothing_else_on_stdout(self) -> None:
        out, err = run("create_api_key", "CI", "--tenant", "acme")
        key = out.strip()
        assert out == f"{key}\n"
        row = ApiKey.authenticate(key)
        assert row is not None
        assert (row.name, row.tenant, row.read_only, row.expires_at) == ("CI", "acme", False, None)
        assert err.strip() == (
            f"Created {row.label}. Scope: runs of tenant acme. May cancel. Never expires."
        )
        assert key not in err

    def test_defaults(self) -> None:
        out, err = run("create_api_key", "CI")
        assert ApiKey.objects.get().tenant == ""
        assert "Scope: runs without a tenant." in err
        assert ApiKey.authenticate(out.strip())

    @pytest.mark.parametrize(
        ("text", "length"), [("90d", timedelta(days=90)), ("12h", timedelta(hours=12))]
    )
    def test_read_only_for_a_while(self, text: str, length: timedelta) -> None:
        _, err = run("create_api_key", "CI", "--read-only", "--expires-in", text)
        row = ApiKey.objects.get()
        assert row.read_only
        assert row.expires_at is not None
        assert abs(row.expires_at - timezone.now() - length) < timedelta(minutes=1)
        assert f"Read-only. Expires {row.expires_at:%Y-%m-%d %H:%M} UTC." in err

    @pytest.mark.parametrize("wrong", ["0d", "90", "d", "-1d", "1.5h", "999999d", "٣d", ""])
    def test_not_a_duration(self, wrong: str) -> None:
        with pytest.raises(CommandError, match="not a duration such as 90d"):
            run("create_api_key", "CI", f"--expires-in={wrong}")
        assert not ApiKey.objects.exists()

    @pytest.mark.parametrize(
        ("args", "field"), [(["x" * 101], "name"), (["CI", "--tenant", "x" * 65], "tenant")]
    )
    def test_value_that_does_not_fit(self, args: list[str], field: str) -> None:
        with pytest.raises(CommandError, match=f"{field}: .*at most"):
            run("create_api_key", *args)
        assert not ApiKey.objects.exists()


class TestRevokeApiKey:
    def test_revokes(self) -> None:
        row, key = ApiKey.issue("CI")
        other = ApiKey.issue("other")[1]
        out, _ = run("revoke_api_key", row.prefix)
        assert out.strip() == f"Revoked {row.label}."
        assert ApiKey.authenticate(key) is None
        assert ApiKey.authenticate(other)

    def test_takes_the_whole_key_too(self) -> None:
        _, key = ApiKey.issue("CI")
        run("revoke_api_key", key)
        assert ApiKey.authenticate(key) is None

    def test_unknown_or_revoked_already(self) -> None:
        row, _ = ApiKey.issue("CI")
        row.revoke()
        for prefix in (row.prefix, "rc_nothing", ""):
            with pytest.raises(CommandError, match="No working API key has the prefix"):
                run("revoke_api_key", prefix)

    def test_ambiguous(self) -> None:
        for _ in range(2):
            ApiKey.issue("CI")
        ApiKey.objects.update(prefix="rc_same")
        with pytest.raises(CommandError, match="Several keys"):
            run("revoke_api_key", "rc_same")
        assert ApiKey.objects.filter(revoked_at=None).count() == 2


class TestCreateApiKeyAsJson:
    def test_one_object(self) -> None:
        out, err = run("create_api_key", "CI", "--tenant", "acme", "--json")
        shown = json.loads(out)
        row = ApiKey.authenticate(shown.pop("key"))
        assert row is not None
        assert shown == {
            "name": "CI",
            "prefix": row.prefix,
            "tenant": "acme",
            "read_only": False,
            "state": "works",
            "created_at": row.created_at.isoformat(),
            "expires_at": None,
            "revoked_at": None,
            "last_used_at": None,
        }
        assert err == ""


class TestListApiKeys:
    def test_table(self) -> None:
        expired, key = ApiKey.issue("Billing service", tenant="acme", read_only=True)
        ApiKey.authenticate(key)
        ApiKey.objects.update(expires_at=timezone.now())
        revoked, _ = ApiKey.issue("old")
        revoked.revoke()
        working, _ = ApiKey.issue("new", tenant="acme")
        lines = run("list_api_keys")[0].splitlines()
        assert [line.split()[:4] for line in lines] == [
            ["prefix", "state", "rights", "tenant"],
            [working.prefix, "works", "cancel", "acme"],
            [revoked.prefix, "revoked", "cancel", "-"],
            [expired.prefix, "expired", "read", "acme"],
        ]
        assert lines[-1].endswith("  Billing service")
        column = lines[0].index("tenant")
        assert [line[column:].split()[0] for line in lines] == ["tenant", "acme", "-", "acme"]
        assert key not in "\n".join(lines)

    def test_json_and_tenant(self) -> None:
        ApiKey.issue("a", tenant="acme")
        ApiKey.issue("b", tenant="globex")
        shown = json.loads(run("list_api_keys", "--json", "--tenant", "acme")[0])
        assert [row["name"] for row in shown] == ["a"]
        assert json.loads(run("list_api_keys", "--json", "--tenant", "x")[0]) == []

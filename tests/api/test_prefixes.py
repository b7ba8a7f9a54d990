"""The API below a prefix of the host's that captures arguments."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.helpers import assert_sound
from tests.helpers import ApiClient, make_run, statuses

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.api.prefix_urls")]


def runs_of_the_organisation(request: Any, queryset: Any) -> Any:
    return queryset.filter(tenant=request.parser_context["kwargs"].get("org", ""))


@pytest.mark.parametrize("prefix", ["/orgs/acme/v1", "/v2", "/by/xml/1/tsk_1/can_1/v1"])
def test_every_endpoint(prefix: str, api: ApiClient) -> None:
    run, other = make_run(), make_run()
    answer = api.send(f"{prefix}/runs/cancel", {"run_ids": [run.run_id]})
    assert assert_sound(answer, 200) == {"cancelled": [run.run_id], "failed": []}
    cancellation = f"{prefix}/cancellations/{answer['Cancellation-Id']}"
    assert_sound(api.send(f"{prefix}/runs/{other.run_id}/cancel", {}), 200)
    assert_sound(api.send(f"{cancellation}/retry", {}), 200)
    assert_sound(api.send(f"{cancellation}/abort", {}), 409)
    for path in (
        f"{prefix}/runs",
        f"{prefix}/runs/{run.run_id}",
        f"{prefix}/cancellations",
        cancellation,
        f"{cancellation}/items",
    ):
        assert_sound(api.get(path), 200)
    # It describes all three prefixes, and is larger than other answers may be.
    assert api.get(f"{prefix}/openapi.json").status_code == 200


def test_scope__reads_the_arguments(api: ApiClient, settings: Any) -> None:
    settings.RUN_CANCEL_SCOPE = f"{__name__}.runs_of_the_organisation"
    ours, theirs = make_run(tenant="acme"), make_run(tenant="other")
    answer = api.send("/orgs/acme/v1/runs/cancel", {"run_ids": [ours.run_id, theirs.run_id]})
    assert assert_sound(answer, 200) == {"cancelled": [ours.run_id], "failed": [theirs.run_id]}
    assert statuses(ours, theirs) == ["cancelled", "queued"]

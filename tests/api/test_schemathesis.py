"""Requests generated from the document, answers checked against it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import schemathesis
from django.core.wsgi import get_wsgi_application
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from django_run_cancel.api.schema import generate_document
from tests.api.fuzzing import IS_LONG, fuzz
from tests.helpers import make_runs

schema = schemathesis.openapi.from_dict(generate_document())
schema.app = get_wsgi_application()

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
# The contract documents 200 and 422 alone, and no other status may be documented with it.
UNDOCUMENTED = [status_code_conformance, negative_data_rejection]
# Whether a moment or a cursor can be used is more than a schema says.
ONLY_THERE = [positive_data_acceptance]
NEEDS_NO_KEY = [ignored_auth]


@pytest.mark.skipif(
    sys.version_info < (3, 12),
    reason="ast.parse() of Python 3.11 can fail (gh-106905)",
)
@pytest.mark.django_db(transaction=True)
@schema.parametrize()
@settings(
    fuzz(10),
    phases=list(Phase) if IS_LONG else [Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_api__as_documented(case: Any, secret: str) -> None:
    make_runs(1)
    is_contract = case.operation.path == "/v1/runs/cancel"
    more = ONLY_THERE if is_contract else UNDOCUMENTED
    case.call_and_validate(
        headers={"x-api-key": secret}, checks=[*CHECKS, *more], excluded_checks=NEEDS_NO_KEY
    )

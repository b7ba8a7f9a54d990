"""What validating 100 ids costs, against an empty view of REST framework.

Run it with ``python -m benchmarks.validation``. Both views run in process, without a database.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

LIMIT = 2.0
ROUNDS = 40
CALLS = 50


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    import django

    django.setup()
    from django.test import RequestFactory
    from rest_framework.parsers import JSONParser
    from rest_framework.renderers import JSONRenderer
    from rest_framework.response import Response
    from rest_framework.views import APIView

    from django_run_cancel.api.generics import RunCancelView
    from django_run_cancel.api.serializers import BulkCancelRunsRequestSerializer

    class Empty(APIView):
        authentication_classes = permission_classes = throttle_classes = ()
        parser_classes = (JSONParser,)
        renderer_classes = (JSONRenderer,)

        def post(self, request: Any) -> Response:
            return Response({"ids": len(request.data)})

    class Validating(RunCancelView[Any]):
        authentication_classes = permission_classes = throttle_classes = ()

        def post(self, request: Any) -> Response:
            return Response({"ids": len(self.validated_body(BulkCancelRunsRequestSerializer))})

    body = json.dumps({"run_ids": [f"tsk_{number:032x}" for number in range(100)]})
    factory = RequestFactory()

    def call(view: Any) -> Callable[[], None]:
        return lambda: view(factory.post("/", body, "application/json"))

    empty, validating = call(Empty.as_view()), call(Validating.as_view())
    times = [(_seconds(empty), _seconds(validating)) for _ in range(ROUNDS)]
    ratio = min(each[1] for each in times) / min(each[0] for each in times)
    median = statistics.median(each[1] for each in times)
    print(f"validating 100 ids: {1000 * median:.2f} ms, {ratio:.2f} times an empty view")
    if ratio > LIMIT:
        sys.exit(f"That is more than {LIMIT} times.")


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS


if __name__ == "__main__":
    main()

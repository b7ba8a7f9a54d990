"""The API, the admin, an empty view, and a view that cancels with hand-written SQL, unchecked."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import connection
from django.urls import include, path
from rest_framework.parsers import JSONParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from benchmarks.floor import cancelling_by_hand


class EmptyView(APIView):
    authentication_classes = permission_classes = throttle_classes = ()
    parser_classes = (JSONParser,)
    renderer_classes = (JSONRenderer,)

    def post(self, request: Request) -> Response:
        return Response({"cancelled": request.data["run_ids"], "failed": []})


class FloorView(EmptyView):
    def post(self, request: Request) -> Response:
        connection.ensure_connection()
        cancelling_by_hand(sorted(request.data["pks"]))()
        return super().post(request)


urlpatterns: list[Any] = [
    path("admin/", admin.site.urls),
    path("v1/", include("django_run_cancel.api.urls")),
    path("empty", EmptyView.as_view()),
    path("floor", FloorView.as_view()),
]

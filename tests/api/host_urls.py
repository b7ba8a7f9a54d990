"""A host with views of its own, whose names are close to ours."""

from __future__ import annotations

from typing import Any

from django.urls import include, path
from rest_framework import generics, serializers


class RunSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["new", "old"])
    progress = serializers.IntegerField()


class ReportSerializer(serializers.Serializer[Any]):
    run = RunSerializer()
    cancellation = serializers.CharField(allow_null=True)


class JobListView(generics.ListCreateAPIView[Any]):
    serializer_class = RunSerializer

    def get_queryset(self) -> Any:
        return []


class ReportView(generics.ListAPIView[Any]):
    serializer_class = ReportSerializer

    def get_queryset(self) -> Any:
        return []


urlpatterns = [
    path("jobs", JobListView.as_view()),
    path("v1/reports", ReportView.as_view()),
    path("v1/", include("django_run_cancel.api.urls")),
]

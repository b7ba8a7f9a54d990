"""URLs of a host with grappelli, which has some of its own."""

from __future__ import annotations

from django.urls import include, path

from tests.urls import urlpatterns

urlpatterns = [path("grappelli/", include("grappelli.urls")), *urlpatterns]

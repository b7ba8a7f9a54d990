"""A host that documents its own views with drf-spectacular, in OpenAPI 3.1."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

ROOT_URLCONF = "tests.api.host_urls"
REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}
SPECTACULAR_SETTINGS = {"OAS_VERSION": "3.1.0"}

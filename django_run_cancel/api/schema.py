"""The OpenAPI document: extensions that make drf-spectacular generate the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.generators import EndpointEnumerator, SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import OpenApiParameter, extend_schema

F = TypeVar("F", bound=Callable[..., Any])

TAGS = [
    {"name": "Runs", "description": "Cancelling, listing and reading runs."},
    {"name": "Cancellations", "description": "The record of who cancelled what, and why."},
]

API_KEY_DESCRIPTION = "API key for authentication."

API_KEY_PARAMETER = OpenApiParameter(
    "x-api-key",
    {
        # In the syntax of OpenAPI 3.0, which replace_nullable() converts.
        "anyOf": [{"type": "string"}],
        "nullable": True,
        "description": API_KEY_DESCRIPTION,
        "title": "X-Api-Key",
    },
    OpenApiParameter.HEADER,
    description=API_KEY_DESCRIPTION,
)


class RunAutoSchema(AutoSchema):
    """Adds parts of an operation that drf-spectacular omits."""

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        """Return the operation, with ``required`` on each parameter, as the contract requires."""
        operation: Any = super().get_operation(*args, **kwargs)
        for parameter in operation.get("parameters", []):
            parameter.setdefault("required", False)
        if not spectacular_settings.OAS_VERSION.startswith("3.0"):
            replace_nullable(operation)
        return operation


def describe_operation(**description: Any) -> Callable[[F], F]:
    """Return a decorator that describes a view method in the document.

    The schema class is set on the method. One on the class would be shared by threads, and the
    host's ``DEFAULT_SCHEMA_CLASS`` may be another one.

    Args:
        **description: The arguments of drf-spectacular's ``extend_schema``.
    """

    def decorate(method: F) -> F:
        method.kwargs = {"schema": RunAutoSchema}  # type: ignore[attr-defined]  # DRF looks there
        decorated: F = extend_schema(**description)(method)
        return decorated

    return decorate


class ContractSerializerExtension(OpenApiSerializerExtension):
    """Adds the titles of the contract's components and properties."""

    target_class = "django_run_cancel.api.serializers.ContractSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: Any) -> Any:
        """Return the component."""
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        schema["title"] = type(self.target).__name__.removesuffix("Serializer")
        for name, property_ in schema["properties"].items():
            property_.setdefault("title", name.replace("_", " ").title())
        return schema


class StrictSerializerExtension(OpenApiSerializerExtension):
    """Forbids additional properties of strict objects, and requires at least one."""

    target_class = "django_run_cancel.api.bulk_serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: Any) -> Any:
        """Return the component."""
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        schema["additionalProperties"] = False
        schema["minProperties"] = 1
        return schema


class ApiKeyScheme(OpenApiAuthenticationExtension):
    """Describes the authentication by API key."""

    target_class = "django_run_cancel.api.authentication.ApiKeyAuthentication"
    name = "RunCancelApiKey"

    def get_security_definition(self, auto_schema: AutoSchema) -> Any:
        """Return the security scheme."""
        return {"type": "apiKey", "in": "header", "name": "x-api-key"}


class RunCancelEndpointEnumerator(EndpointEnumerator):
    """Selects the views of this package among all views of the host."""

    def should_include_endpoint(self, path: str, callback: Any) -> bool:
        """Tell whether an endpoint is one of this package."""
        own = getattr(getattr(callback, "cls", None), "is_run_cancel_view", False)
        return own and bool(super().should_include_endpoint(path, callback))


class RunCancelSchemaGenerator(SchemaGenerator):
    """Generates the document of this package's views, in OpenAPI 3.1."""

    endpoint_inspector_cls = RunCancelEndpointEnumerator

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        """Return the document."""
        schema = super().get_schema(request, public)
        schema.update(
            openapi="3.1.0",
            info={
                "title": "Run cancellation",
                "version": "1.0.0",
                "description": "Cancel runs, and read what was cancelled, by whom and why.",
                "contact": {"name": "django-run-cancel"},
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            # The paths include the host's URL prefix.
            servers=[{"url": "/"}],
            tags=TAGS,
            # The default for operations without ``security``, such as the published one.
            security=[],
        )
        replace_nullable(schema)
        return schema


def generate_document(request: Any = None) -> Any:
    """Return the OpenAPI document of this package."""
    return RunCancelSchemaGenerator().get_schema(request, public=True)


def replace_nullable(node: Any) -> None:
    """Replace ``nullable`` of OpenAPI 3.0 by the type ``null`` of OpenAPI 3.1, in place.

    drf-spectacular does so only with a global setting, on which this package does not depend.
    """
    if isinstance(node, list):
        for item in node:
            replace_nullable(item)
    elif isinstance(node, dict):
        if node.get("nullable") is True:
            del node["nullable"]
            if "anyOf" in node:
                node["anyOf"] = [*node["anyOf"], {"type": "null"}]
            else:
                node["type"] = [node["type"], "null"]
        for item in node.values():
            replace_nullable(item)

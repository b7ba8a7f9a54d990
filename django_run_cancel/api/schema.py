"""The OpenAPI document: what drf-spectacular needs to be told to generate the contract."""

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
        # In the form that OpenAPI 3.0 knows too; see replace_nullable().
        "anyOf": [{"type": "string"}],
        "nullable": True,
        "description": API_KEY_DESCRIPTION,
        "title": "X-Api-Key",
    },
    OpenApiParameter.HEADER,
    description=API_KEY_DESCRIPTION,
)


class RunAutoSchema(AutoSchema):
    """Writes what drf-spectacular leaves out of an operation."""

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        """Return the operation, with ``required`` on every parameter as the contract has it."""
        operation: Any = super().get_operation(*args, **kwargs)
        for parameter in operation.get("parameters", []):
            parameter.setdefault("required", False)
        if not spectacular_settings.OAS_VERSION.startswith("3.0"):
            replace_nullable(operation)
        return operation


def describe_operation(**description: Any) -> Callable[[F], F]:
    """Return a decorator that describes a view method in the document.

    The schema is set on the method, because one on the class is shared by threads, and because
    hosts then need not set ``DEFAULT_SCHEMA_CLASS``.

    Args:
        **description: The arguments of drf-spectacular's ``extend_schema``.
    """

    def decorate(method: F) -> F:
        method.kwargs = {"schema": RunAutoSchema}  # type: ignore[attr-defined]  # DRF looks there
        decorated: F = extend_schema(**description)(method)
        return decorated

    return decorate


class ContractSerializerExtension(OpenApiSerializerExtension):
    """Gives the components of the contract, and their properties, their titles."""

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
    """Says which objects may have no other properties, and which must have one."""

    target_class = "django_run_cancel.api.bulk_serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: Any) -> Any:
        """Return the component."""
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        schema["additionalProperties"] = False
        schema["minProperties"] = 1
        return schema


class ApiKeyScheme(OpenApiAuthenticationExtension):
    """Describes the key in the header."""

    target_class = "django_run_cancel.api.authentication.ApiKeyAuthentication"
    name = "RunCancelApiKey"

    def get_security_definition(self, auto_schema: AutoSchema) -> Any:
        """Return the security scheme."""
        return {"type": "apiKey", "in": "header", "name": "x-api-key"}


class RunCancelEndpointEnumerator(EndpointEnumerator):
    """Finds the views of this package among the host's."""

    def should_include_endpoint(self, path: str, callback: Any) -> bool:
        """Tell whether an endpoint belongs to the document."""
        own = getattr(getattr(callback, "cls", None), "is_run_cancel_view", False)
        return own and bool(super().should_include_endpoint(path, callback))


class RunCancelSchemaGenerator(SchemaGenerator):
    """Generates a document of these views alone, in OpenAPI 3.1 whatever the host has set."""

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
            # The paths begin at the root of the host, whatever prefix they are below.
            servers=[{"url": "/"}],
            tags=TAGS,
            # Of operations that name none; the published one does not.
            security=[],
        )
        replace_nullable(schema)
        return schema


def generate_document(request: Any = None) -> Any:
    """Return the OpenAPI document of this package."""
    return RunCancelSchemaGenerator().get_schema(request, public=True)


def replace_nullable(node: Any) -> None:
    """Replace ``nullable``, in place, by what OpenAPI 3.1 has instead.

    drf-spectacular does it for its own fields according to a global setting, which this package
    neither needs nor changes.
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

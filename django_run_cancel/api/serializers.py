"""The shapes that the API answers with. Strings of the contract stay untranslated."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from django.utils.translation import override
from drf_spectacular.utils import extend_schema_field
from rest_framework import ISO_8601, serializers

from django_run_cancel.api.parsing import MAX_RUN_IDS
from django_run_cancel.models import ApiKey
from django_run_cancel.states import Source

# No ChoiceField below: drf-spectacular would make it a component that can clash with an enum of
# the host's.


# Base of the components of the contract, which have a title for everything. No docstring here or
# below: as a description it would become a part of the contract.
class ContractSerializer(serializers.Serializer[Any]):
    pass


@extend_schema_field({"anyOf": [{"type": "string"}, {"type": "integer"}]})
class PlaceField(serializers.Field[Any, Any, Any, Any]):
    """A name or an index on the way to an error."""


@extend_schema_field({"type": "object"})
class ContextField(serializers.Field[Any, Any, Any, Any]):
    """The values that an error's message is made from."""


class UtcField(serializers.DateTimeField):
    """A point in time, shown in UTC and ISO 8601 whatever the host has set."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(format=ISO_8601, default_timezone=UTC, **kwargs)


class EnglishField(serializers.CharField):
    """Words for people, which stay English: clients show them beside their own."""

    def to_representation(self, value: Any) -> str:
        """Return the words."""
        with override(None):
            return str(value)


class BulkCancelRunsRequestSerializer(ContractSerializer):
    run_ids = serializers.ListField(
        child=serializers.CharField(),
        max_length=MAX_RUN_IDS,
        help_text="List of run IDs to cancel",
    )


class BulkCancelRunsResponseSerializer(ContractSerializer):
    cancelled = serializers.ListField(
        child=serializers.CharField(), help_text="Run IDs that were successfully cancelled"
    )
    failed = serializers.ListField(
        child=serializers.CharField(), help_text="Run IDs that could not be cancelled"
    )


class ValidationErrorSerializer(ContractSerializer):
    loc = serializers.ListField(child=PlaceField(), label="Location")
    msg = serializers.CharField(label="Message")
    type = serializers.CharField(label="Error Type")
    input = serializers.JSONField(required=False)
    ctx = ContextField(required=False, label="Context")


class HTTPValidationErrorSerializer(ContractSerializer):
    detail = ValidationErrorSerializer(many=True, required=False)


class RunCancelErrorSerializer(serializers.Serializer[Any]):
    """Why a request could not be answered."""

    detail = serializers.CharField()


class CancelRunRequestSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        required=False, allow_blank=True, max_length=2_000, help_text="Why, for people."
    )


class CancellableRunSerializer(serializers.Serializer[Any]):
    """A run."""

    run_id = serializers.CharField()
    run_type = serializers.CharField(help_text="task, workflow, or a type of the host's.")
    status = serializers.CharField(
        help_text="created, queued, running, paused, completed, failed, terminated, timed_out "
        "or cancelled."
    )
    state = EnglishField(
        source="state_words",
        help_text="The status in words; of a cancelled run also how far its work has stopped, such "
        "as: cancelled, stopping. Programs look at status and stop_state.",
    )
    parent_run_id = serializers.CharField(
        source="parent.run_id", default=None, allow_null=True, help_text="The run it is part of."
    )
    title = serializers.CharField()
    metadata = serializers.JSONField()
    created_at = UtcField()
    queued_at = UtcField(allow_null=True)
    started_at = UtcField(allow_null=True)
    finished_at = UtcField(allow_null=True)
    failure_reason = serializers.CharField()
    cancellation_id = serializers.CharField(
        source="cancellation.cancellation_id",
        default=None,
        allow_null=True,
        help_text="The request that cancelled it.",
    )
    stop_state = serializers.CharField(
        help_text="How the work of a cancelled run ended: never_started, acknowledged, killed or "
        "presumed; stopping until then. Blank while the run is not cancelled."
    )
    stopped_at = UtcField(allow_null=True)


class RunCancellationSerializer(serializers.Serializer[Any]):
    """A request to cancel runs."""

    cancellation_id = serializers.CharField()
    requested_by = serializers.CharField(help_text="The user, key or program that asked.")
    source = serializers.CharField(  # type: ignore[assignment]  # DRF takes declared fields off the class
        help_text="api, admin, command, python or bulk."
    )
    ip_address = serializers.CharField(
        allow_null=True,
        help_text="Of the client that asked. Keys are told only that of requests to the API.",
    )
    request_id = serializers.CharField(help_text="The X-Request-ID of the request, if any.")
    reason = serializers.CharField()
    force = serializers.BooleanField()
    requested_at = UtcField()
    total_count = serializers.IntegerField(help_text="Runs asked for.")
    cancelled_count = serializers.IntegerField(
        help_text="Of these, runs that are cancelled now, by this request or an earlier one."
    )
    failed_count = serializers.IntegerField(help_text="Of these, runs that are not.")
    cascaded_count = serializers.IntegerField(help_text="Descendants cancelled with them.")

    def to_representation(self, instance: Any) -> Any:
        """Return what the caller may know."""
        shown = super().to_representation(instance)
        # From where its operators work is nothing that the host's customers need to know.
        if shown["source"] != Source.API and isinstance(self.context["request"].auth, ApiKey):
            shown |= {"ip_address": None, "request_id": ""}
        return shown


class RunCancellationItemSerializer(serializers.Serializer[Any]):
    """What a cancellation did with one run."""

    run_id = serializers.CharField()
    outcome = serializers.CharField(
        help_text="cancelled, already_cancelled, already_finished or not_found."
    )
    via = serializers.CharField(help_text="requested or cascade.")
    previous_status = serializers.CharField(help_text="Blank when the run was not found.")
    delivery = serializers.CharField(
        help_text="Whether its executor was told: not_needed, pending, delivered or failed."
    )
    attempts = serializers.IntegerField()
    force = serializers.BooleanField(help_text="Asked for, or escalated to after the grace.")
    handling = serializers.CharField(
        help_text="Whether the handlers of the host were called, in the words of delivery."
    )
    stop_state = serializers.CharField(help_text="As of the run now; blank when it is gone.")
    stopped_at = UtcField(allow_null=True)

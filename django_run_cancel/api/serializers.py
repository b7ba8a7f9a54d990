"""Serializers of requests, query parameters, responses and errors.

They also describe these in the OpenAPI document. The contract's strings are not translated.
"""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from django_run_cancel.api.fields import (
    ChoiceListField,
    ContextField,
    FailureReasonField,
    LocationPartField,
    RunIdListField,
    SelectionField,
    StrictBooleanField,
    StrictDateTimeField,
    StrictTextField,
    UntranslatedTextField,
    UtcDateTimeField,
)
from django_run_cancel.cancellation.arguments import MAX_REASON_LENGTH, MAX_RUN_ID_LENGTH
from django_run_cancel.models import ApiKey
from django_run_cancel.states import Outcome, RunStatus, Source, StopState


# Base of the contract's components, all of which have titles. It has no docstring, and neither have
# they: drf-spectacular would add it to the contract as a description.
class ContractSerializer(serializers.Serializer[Any]):
    pass


class BulkCancelRunsRequestSerializer(ContractSerializer):
    run_ids = RunIdListField(help_text="List of run IDs to cancel")


class BulkCancelRunsBodySerializer(BulkCancelRunsRequestSerializer):
    """The body that the view accepts, with a field that is not part of the contract."""

    force = StrictBooleanField(required=False, default=False)


class BulkCancelRunsResponseSerializer(ContractSerializer):
    cancelled = serializers.ListField(
        child=serializers.CharField(), help_text="Run IDs that were successfully cancelled"
    )
    failed = serializers.ListField(
        child=serializers.CharField(), help_text="Run IDs that could not be cancelled"
    )


class ValidationErrorSerializer(ContractSerializer):
    loc = serializers.ListField(child=LocationPartField(), label="Location")
    msg = serializers.CharField(label="Message")
    type = serializers.CharField(label="Error Type")
    input = serializers.JSONField(required=False)
    ctx = ContextField(required=False, label="Context")


class HTTPValidationErrorSerializer(ContractSerializer):
    detail = ValidationErrorSerializer(many=True, required=False)


class RunCancelErrorSerializer(serializers.Serializer[Any]):
    """Why a request could not be answered."""

    detail = serializers.CharField()
    hint = serializers.CharField(required=False, help_text="What to do, where that can be said.")


class CancelRunRequestSerializer(serializers.Serializer[Any]):
    reason = StrictTextField(
        required=False, default="", max_length=MAX_REASON_LENGTH, help_text="Why, for people."
    )
    force = StrictBooleanField(
        required=False,
        default=False,
        help_text="Let executors kill at once what has started, where they can; also when the run "
        "was cancelled before and is still stopping. Users need the permission force_cancel_run.",
    )


class EmptyBodySerializer(serializers.Serializer[Any]):
    """A JSON object of which nothing is read."""


class IdempotencyKeySerializer(serializers.Serializer[Any]):
    """The header that makes a repeated request one request."""

    def get_fields(self) -> dict[str, Any]:
        """Return the field, whose name is not a valid Python identifier."""
        return {"idempotency-key": StrictTextField(allow_blank=False, max_length=255)}


class RunFilterSerializer(serializers.Serializer[Any]):
    """The filters of the list of runs."""

    status = ChoiceListField(
        choices=RunStatus.values, required=False, help_text="One of these statuses."
    )
    type = StrictTextField(
        source="run_type", required=False, max_length=MAX_RUN_ID_LENGTH, help_text="Of this type."
    )
    parent = StrictTextField(  # type: ignore[assignment]  # DRF takes declared fields off the class
        required=False,
        max_length=MAX_RUN_ID_LENGTH,
        help_text="Direct children of this run id.",
    )
    created_after = StrictDateTimeField(required=False, help_text="ISO 8601; this moment or later.")
    created_before = StrictDateTimeField(required=False, help_text="ISO 8601; before this moment.")


class CancellableRunSerializer(serializers.Serializer[Any]):
    """A run."""

    run_id = serializers.CharField()
    run_type = serializers.CharField(help_text="task, workflow, or a type of the host's.")
    status = serializers.CharField(
        help_text="created, queued, running, paused, completed, failed, terminated, timed_out "
        "or cancelled."
    )
    state = UntranslatedTextField(
        source="state_words",
        help_text="The status in words; of a cancelled run also how far its work has stopped, such "
        "as: cancelled, stopping. Programs look at status and stop_state.",
    )
    parent_run_id = serializers.CharField(
        source="parent.run_id", default=None, allow_null=True, help_text="The run it is part of."
    )
    title = serializers.CharField()
    metadata = serializers.JSONField()
    created_at = UtcDateTimeField()
    queued_at = UtcDateTimeField(allow_null=True)
    started_at = UtcDateTimeField(allow_null=True)
    finished_at = UtcDateTimeField(allow_null=True)
    failure_reason = FailureReasonField(
        help_text="Why it failed. Of an error, keys read no more than its class, by default."
    )
    cancellation_id = serializers.CharField(
        source="cancellation.cancellation_id",
        default=None,
        allow_null=True,
        help_text="The request that cancelled it.",
    )
    stop_state = serializers.CharField(
        help_text="How the code of a cancelled run ended: never_started, acknowledged, killed or "
        "presumed; stopping until then. Blank while the run is not cancelled."
    )
    stopped_at = UtcDateTimeField(allow_null=True)


class RunCancellationSerializer(serializers.Serializer[Any]):
    """A request to cancel runs."""

    cancellation_id = serializers.CharField()
    requested_by = serializers.CharField(help_text="The user, key or program that asked.")
    source = serializers.CharField(  # type: ignore[assignment]  # DRF takes declared fields off the class
        help_text="api, admin, command or python."
    )
    ip_address = serializers.CharField(
        allow_null=True,
        help_text="Of the client that asked. Keys are told only that of requests to the API.",
    )
    request_id = serializers.CharField(help_text="The X-Request-ID of the request, if any.")
    reason = serializers.CharField()
    force = serializers.BooleanField()
    requested_at = UtcDateTimeField()
    state = serializers.CharField(
        help_text="pending, running, completed, aborted or failed; completed when few runs were "
        "asked for."
    )
    finished_at = UtcDateTimeField(
        allow_null=True, help_text="When the last run of a bulk cancellation was dealt with."
    )
    selection = SelectionField(
        allow_null=True,
        help_text="Of a bulk cancellation: its filter, or how many run_ids were named.",
    )
    total_count = serializers.IntegerField(
        help_text="Runs asked for; of a filter, runs that matched."
    )
    processed_count = serializers.IntegerField(
        source="progress.processed_count", help_text="Of these, runs that have been dealt with."
    )
    cancelled_count = serializers.IntegerField(
        source="progress.cancelled_count",
        help_text="Of these, runs that are cancelled now, by this request or an earlier one.",
    )
    already_count = serializers.IntegerField(
        source="progress.already_count", help_text="Of these, runs that were cancelled before."
    )
    failed_count = serializers.IntegerField(
        source="progress.failed_count", help_text="Of these, runs that are not cancelled."
    )
    cascaded_count = serializers.IntegerField(
        source="progress.cascaded_count", help_text="Descendants cancelled with them."
    )
    rate = serializers.FloatField(
        source="progress.rate",
        allow_null=True,
        help_text="Of a bulk cancellation: runs dealt with a second.",
    )
    estimated_end = UtcDateTimeField(
        source="progress.estimated_end",
        allow_null=True,
        help_text="When a bulk cancellation will have ended at this rate; null unless it runs.",
    )

    def to_representation(self, instance: Any) -> Any:
        """Return the data; for API keys, without the origin of requests by operators."""
        data = super().to_representation(instance)
        # Customers of the host must not learn the addresses of its operators.
        if data["source"] != Source.API and isinstance(self.context["request"].auth, ApiKey):
            data |= {"ip_address": None, "request_id": ""}
        return data


class CancellationItemFilterSerializer(serializers.Serializer[Any]):
    """The filters of the list of items."""

    outcome = ChoiceListField(
        choices=Outcome.values, required=False, help_text="With one of these outcomes."
    )
    stop_state = ChoiceListField(
        choices=StopState.values,
        required=False,
        help_text="Of runs that are in one of these states now.",
    )


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
    stopped_at = UtcDateTimeField(allow_null=True)

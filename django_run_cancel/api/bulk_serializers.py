"""Serializers of requests for bulk cancellations, and of their previews."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Any

from rest_framework import serializers

from django_run_cancel.api.fields import (
    MAX_ERRORS_PER_FIELD,
    ActiveStatusField,
    MetadataField,
    RunIdListField,
    StrictBooleanField,
    StrictDateTimeField,
    StrictTextField,
)
from django_run_cancel.cancellation.arguments import MAX_REASON_LENGTH, MAX_RUN_ID_LENGTH
from django_run_cancel.cancellation.bulk import PREVIEW_LIMIT

MAX_TITLE_LENGTH = 255


class StrictSerializer(serializers.Serializer[Any]):
    """A JSON object without other fields: one that is misspelt would cancel more than was meant."""

    def to_internal_value(self, data: Any) -> Any:
        """Return the values.

        Raises:
            ValidationError: There is an unknown field, or a value is invalid.
        """
        if isinstance(data, Mapping):
            unknown = (name for name in data if name not in self.fields)
            choices = ", ".join(self.fields)
            error = serializers.ErrorDetail(
                f"Extra inputs are not permitted; choose from {choices}", "extra_forbidden"
            )
            wrong: Any = {name: [error] for name in islice(unknown, MAX_ERRORS_PER_FIELD)}
            if wrong:
                raise serializers.ValidationError(wrong)
        return super().to_internal_value(data)


class RunSelectionSerializer(StrictSerializer):
    """Active runs that match all of these, of which there must be at least one."""

    default_error_messages = {
        "too_short": "Name at least one filter: without any, all runs would match"
    }

    status = ActiveStatusField(required=False, help_text="One of these statuses.")
    type = StrictTextField(required=False, max_length=MAX_RUN_ID_LENGTH, help_text="Of this type.")
    tenant = StrictTextField(
        required=False,
        max_length=MAX_RUN_ID_LENGTH,
        help_text="Of this tenant. Not for keys, which reach a single one.",
    )
    parent = StrictTextField(  # type: ignore[assignment]  # DRF takes declared fields off the class
        required=False,
        max_length=MAX_RUN_ID_LENGTH,
        help_text="Direct children of this run id.",
    )
    ancestor = StrictTextField(
        required=False,
        max_length=MAX_RUN_ID_LENGTH,
        help_text="Descendants of this run id, at any depth.",
    )
    backend = StrictTextField(
        required=False, max_length=MAX_RUN_ID_LENGTH, help_text="With this alias of an executor."
    )
    title = StrictTextField(
        required=False, max_length=MAX_TITLE_LENGTH, help_text="With exactly this title."
    )
    created_after = StrictDateTimeField(required=False, help_text="ISO 8601; this moment or later.")
    created_before = StrictDateTimeField(required=False, help_text="ISO 8601; before this moment.")
    started_after = StrictDateTimeField(required=False, help_text="ISO 8601; this moment or later.")
    started_before = StrictDateTimeField(required=False, help_text="ISO 8601; before this moment.")
    metadata = MetadataField(
        required=False, help_text="With these values, exactly, of keys at the top of the metadata."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse a selection without filters, which would match all runs."""
        if not attrs:
            self.fail("too_short")
        return attrs

    @staticmethod
    def as_json(filters: Mapping[str, Any]) -> dict[str, Any]:
        """Convert valid filters to JSON values, for the Cancellation."""
        return {
            name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
            for name, value in filters.items()
        }


class BulkCancellationRequestSerializer(StrictSerializer):
    """Either ``run_ids`` or ``filter``, and how to cancel these runs."""

    default_error_messages = {
        "selection_invalid": "Name the runs either by run_ids or by filter",
    }

    run_ids = RunIdListField(
        required=False,
        max_length=None,
        help_text="Ids, as many as the size of the body allows. Repeated ones count once.",
    )
    filter = RunSelectionSerializer(required=False)
    reason = StrictTextField(
        required=False, default="", max_length=MAX_REASON_LENGTH, help_text="Why, for people."
    )
    force = StrictBooleanField(
        required=False,
        default=False,
        help_text="Let executors kill at once what has started, where they can. Users need the "
        "permission force_cancel_run.",
    )
    dry_run = StrictBooleanField(
        required=False, default=False, help_text="Only say what would happen; the answer is 200."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Require exactly one of ``run_ids`` and ``filter``."""
        if ("run_ids" in attrs) == ("filter" in attrs):
            self.fail("selection_invalid")
        return attrs


class BulkCancellationPreviewItemSerializer(serializers.Serializer[Any]):
    """What would happen to one run."""

    run_id = serializers.CharField()
    outcome = serializers.CharField(
        help_text="cancelled, already_cancelled, already_finished or not_found."
    )
    via = serializers.CharField(help_text="requested or cascade.")
    previous_status = serializers.CharField(help_text="As it is; blank when it is not found.")


class BulkCancellationPreviewSerializer(serializers.Serializer[Any]):
    """What a bulk cancellation would do."""

    count = serializers.IntegerField(
        help_text=f"Runs that were asked for, counted up to {PREVIEW_LIMIT:,}."
    )
    is_capped = serializers.BooleanField(help_text="Whether there are more.")
    sample = BulkCancellationPreviewItemSerializer(
        many=True, help_text="The first of them, then some of their descendants."
    )

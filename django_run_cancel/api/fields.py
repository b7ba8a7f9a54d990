"""Serializer fields: lists of ids and choices, strict strings and values, and times in UTC.

Their error codes are the error types of the contract; see ``validation_errors``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from django.utils.dateparse import parse_datetime
from django.utils.translation import override
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import ISO_8601, serializers

from django_run_cancel.cancellation.filters import is_metadata_key
from django_run_cancel.conf import settings
from django_run_cancel.models import ApiKey
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import ACTIVE, RunStatus

MAX_IDS_PER_REQUEST = 100
"""Maximum number of ids in one request, by the contract."""

MAX_ERRORS_PER_FIELD = 100
"""Maximum number of reported errors for the items of a list, or for unknown names."""

MAX_DATETIME_LENGTH = 64

MAX_METADATA_KEYS = 20
MAX_METADATA_LENGTH = 255
MAX_METADATA_BITS = 63
"""Maximum bits of an integer that JSON columns of all databases compare exactly."""

ERROR = re.compile(r"((?:\w+\.)*[A-Z]\w*)(?::|$)")
"""Matches the class and the colon of an exception as Python formats it, but rarely other text."""


class RunIdListField(serializers.ListField):
    """A list of strings, which are not converted; by default at most 100.

    The length is checked first, so that the items of a longer list are not validated.
    """

    default_error_messages = {
        "list_type": "Input should be a valid list",
        "too_long": "List should have at most {max_length} items after validation, not {length}",
        "string_type": "Input should be a valid string",
    }

    def __init__(self, *, max_length: int | None = MAX_IDS_PER_REQUEST, **kwargs: Any) -> None:
        super().__init__(child=serializers.CharField(), max_length=max_length, **kwargs)

    def validate_empty_values(self, data: Any) -> Any:
        """Treat null as a value of the wrong type."""
        if data is None:
            self.fail("list_type")
        return super().validate_empty_values(data)

    def to_internal_value(self, data: Any) -> list[str]:
        """Return the ids, neither trimmed nor converted.

        Raises:
            ValidationError: The value is not a list, is too long, or has items that are no strings.
        """
        if not isinstance(data, list):
            self.fail("list_type")
        if self.max_length is not None and len(data) > self.max_length:
            self.fail("too_long", max_length=self.max_length, length=len(data))
        message = str(self.error_messages["string_type"])
        indexes = (index for index, item in enumerate(data) if not isinstance(item, str))
        wrong: Any = {
            index: [serializers.ErrorDetail(message, "string_type")]
            for index in islice(indexes, MAX_ERRORS_PER_FIELD)
        }
        if wrong:
            raise serializers.ValidationError(wrong)
        return data


class StrictTextField(serializers.CharField):
    """A string that the database can store; it is neither trimmed nor converted."""

    default_error_messages = {
        "string_type": "Input should be a valid string",
        "string_invalid": "Input should be text of at most {max_length} characters, {demand}",
    }

    def __init__(self, *, max_length: int, **kwargs: Any) -> None:
        self.may_be_blank = kwargs.pop("allow_blank", True)
        super().__init__(max_length=max_length, allow_blank=True, **kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the text.

        Raises:
            ValidationError: The value is not a string, is too long, is blank if that is not
                allowed, or contains NUL.
        """
        if data is serializers.empty:
            return super().run_validation(data)
        if not isinstance(data, str):
            self.fail("string_type")
        is_blank = not (self.may_be_blank or data.strip())
        if is_blank or not is_storable(data, self.max_length or 0):
            demand = "without NUL" if self.may_be_blank else "without NUL and not blank"
            self.fail("string_invalid", max_length=self.max_length, demand=demand)
        return data


class StrictBooleanField(serializers.BooleanField):
    """A JSON boolean; other values, such as "true" or 1, are invalid."""

    default_error_messages = {"bool_type": "Input should be a valid boolean"}

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the value.

        Raises:
            ValidationError: The value is not a boolean.
        """
        if data is not serializers.empty and not isinstance(data, bool):
            self.fail("bool_type")
        return super().run_validation(data)


class StrictDateTimeField(serializers.CharField):
    """A time in ISO 8601; without an offset, in UTC."""

    default_error_messages = {"datetime_parsing": "Input should be a valid datetime"}

    def __init__(self, **kwargs: Any) -> None:
        # Without allow_blank, DRF would treat a blank query parameter as missing.
        super().__init__(allow_blank=True, **kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the time in UTC.

        Raises:
            ValidationError: The value is no time, or outside of the years 1 to 9999 in UTC.
        """
        if data is serializers.empty:
            return super().run_validation(data)
        moment = parse_utc_datetime(data) if isinstance(data, str) else None
        if moment is None:
            self.fail("datetime_parsing")
        return moment


def parse_utc_datetime(text: str) -> datetime | None:
    """Parse a time in ISO 8601, and return it in UTC; None if it is invalid."""
    try:
        # In a query string, an unescaped ``+`` of an offset is decoded as a space.
        moment = parse_datetime(text.replace(" ", "+") if "T" in text else text)
        # parse_datetime() accepts a trailing NUL, and any number of fractional digits.
        if moment is None or not is_storable(text, MAX_DATETIME_LENGTH):
            return None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


class ChoiceListField(serializers.ListField):
    """A list of choices.

    Not a ``ChoiceField``, for which drf-spectacular would add a component to the host's document,
    whose name can clash with an enum of the host.
    """

    default_error_messages = {"enum": "Input should be one of {choices}"}

    def __init__(self, *, choices: Iterable[str], **kwargs: Any) -> None:
        self.choices = [str(choice) for choice in choices]
        super().__init__(child=serializers.CharField(), **kwargs)

    def to_internal_value(self, data: Any) -> list[str]:
        """Return the values without duplicates, in the order of the choices.

        Raises:
            ValidationError: A value is not one of the choices.
        """
        # DRF parses a query such as status[0]x=1 to dicts.
        if not all(isinstance(each, str) and each in self.choices for each in data):
            self.fail("enum", choices=", ".join(self.choices))
        return [choice for choice in self.choices if choice in data]


ACTIVE_STATUSES = [status.value for status in RunStatus if status in ACTIVE]


@extend_schema_field(
    {
        "anyOf": [
            {"type": "string", "enum": ACTIVE_STATUSES},
            {
                "type": "array",
                "items": {"type": "string", "enum": ACTIVE_STATUSES},
                "minItems": 1,
            },
        ]
    }
)
class ActiveStatusField(ChoiceListField):
    """A status of active runs, or a list of such statuses, in JSON."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=ACTIVE_STATUSES, **kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the statuses.

        Raises:
            ValidationError: A status is unknown, or the list is empty.
        """
        statuses = [data] if isinstance(data, str) else data
        if statuses is not serializers.empty and not (isinstance(statuses, list) and statuses):
            self.fail("enum", choices=", ".join(self.choices))
        return super().run_validation(statuses)


@extend_schema_field(
    {
        "type": "object",
        "additionalProperties": {
            "anyOf": [
                {"type": "string", "maxLength": MAX_METADATA_LENGTH},
                {"type": "number"},
                {"type": "boolean"},
            ],
            "nullable": True,
        },
        "minProperties": 1,
        "maxProperties": MAX_METADATA_KEYS,
    }
)
class MetadataField(serializers.Field[Any, Any, Any, Any]):
    """An object of top-level metadata keys, with the values to match."""

    default_error_messages = {
        "dict_invalid": "Input should be an object with 1 to {keys} keys. These are of 1 to "
        '{length} characters, without NUL and ", no whole numbers, and do not begin with -',
        "scalar_type": "Input should be text of at most {length} characters, without NUL, a "
        "finite number of up to 64 bits, true, false or null",
    }

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the object, sorted by its keys.

        Raises:
            ValidationError: The value is not such an object, or is empty.
        """
        if data is serializers.empty:
            return super().run_validation(data)
        is_dict = isinstance(data, dict) and 0 < len(data) <= MAX_METADATA_KEYS
        if not is_dict or not all(map(_is_metadata_key, data)):
            self.fail("dict_invalid", keys=MAX_METADATA_KEYS, length=MAX_METADATA_LENGTH)
        message = self.error_messages["scalar_type"].format(length=MAX_METADATA_LENGTH)
        wrong = {
            key: [serializers.ErrorDetail(message, "scalar_type")]
            for key, value in data.items()
            if not _is_scalar(value)
        }
        if wrong:
            raise serializers.ValidationError(wrong)
        return dict(sorted(data.items()))


def _is_metadata_key(key: str) -> bool:
    return is_metadata_key(key) and is_storable(key, MAX_METADATA_LENGTH)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return is_storable(value, MAX_METADATA_LENGTH)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() <= MAX_METADATA_BITS
    return value is None


@extend_schema_field({"anyOf": [{"type": "string"}, {"type": "integer"}]})
class LocationPartField(serializers.Field[Any, Any, Any, Any]):
    """A name or index in the location of an error."""


@extend_schema_field({"type": "object"})
class ContextField(serializers.Field[Any, Any, Any, Any]):
    """Values in the message of an error."""


@extend_schema_field(OpenApiTypes.OBJECT)  # not a dict: older drf-spectacular changes it
class SelectionField(serializers.JSONField):
    """The requested ids or filters of a bulk cancellation."""


class UtcDateTimeField(serializers.DateTimeField):
    """A time in UTC and ISO 8601, regardless of the host's settings."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(format=ISO_8601, default_timezone=UTC, **kwargs)


class UntranslatedTextField(serializers.CharField):
    """A label that is always in English, independent of the active language."""

    def to_representation(self, value: Any) -> str:
        """Return the label."""
        with override(None):
            return str(value)


class FailureReasonField(serializers.CharField):
    """The reason why a run failed; for API keys, only the class of an exception.

    The message of an exception can contain host names, queries and data of other tenants.
    """

    def to_representation(self, value: str) -> str:
        """Return the reason, or the class of the exception."""
        is_key = isinstance(self.context["request"].auth, ApiKey)
        error = ERROR.match(value)
        if not is_key or settings.EXPOSE_ERRORS or error is None:
            return value
        return f"{error[1]}: see the log"

"""Serializer fields: lists of run ids and of choices, strict texts and values, times in UTC.

The codes of their errors are the types of the contract; see ``validation_errors``.
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
"""Ids that one request may name, by the contract."""

MAX_ERRORS_PER_FIELD = 100
"""What is wrong with more items of a list, or with more names, is not said."""

MAX_DATETIME_LENGTH = 64

MAX_METADATA_KEYS = 20
MAX_METADATA_LENGTH = 255
MAX_METADATA_BITS = 63
"""Of an integer: what JSON of every database compares exactly."""

ERROR = re.compile(r"((?:\w+\.)*[A-Z]\w*)(?::|$)")
"""How Python shows an error: its class, and what it says. What hosts write rarely looks like it."""


class RunIdListField(serializers.ListField):
    """A list of strings, taken as they are sent, by default of at most 100.

    The length is checked first, so that no item of a list that is too long is looked at.
    """

    default_error_messages = {
        "list_type": "Input should be a valid list",
        "too_long": "List should have at most {max_length} items after validation, not {length}",
        "string_type": "Input should be a valid string",
    }

    def __init__(self, *, max_length: int | None = MAX_IDS_PER_REQUEST, **kwargs: Any) -> None:
        super().__init__(child=serializers.CharField(), max_length=max_length, **kwargs)

    def validate_empty_values(self, data: Any) -> Any:
        """Take null as a value of the wrong type."""
        if data is None:
            self.fail("list_type")
        return super().validate_empty_values(data)

    def to_internal_value(self, data: Any) -> list[str]:
        """Return the ids, neither trimmed nor converted.

        Raises:
            ValidationError: It is no list, too long, or holds something else than strings.
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
    """Text that the database can hold, taken as it is sent."""

    default_error_messages = {
        "string_type": "Input should be a valid string",
        "string_invalid": "Input should be text of at most {max_length} characters, {demand}",
    }

    def __init__(self, *, max_length: int, **kwargs: Any) -> None:
        self.may_be_blank = kwargs.pop("allow_blank", True)
        super().__init__(max_length=max_length, allow_blank=True, trim_whitespace=False, **kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the text.

        Raises:
            ValidationError: It is no text, too long, blank though it must not be, or holds NUL.
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
    """A boolean of JSON, and nothing that only looks like one."""

    default_error_messages = {"bool_type": "Input should be a valid boolean"}

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the value.

        Raises:
            ValidationError: It is something else.
        """
        if data is not serializers.empty and not isinstance(data, bool):
            self.fail("bool_type")
        return super().run_validation(data)


class StrictDateTimeField(serializers.CharField):
    """A point in time in ISO 8601; UTC where it names no offset."""

    default_error_messages = {"datetime_parsing": "Input should be a valid datetime"}

    def __init__(self, **kwargs: Any) -> None:
        # A blank query parameter would be taken as none.
        super().__init__(allow_blank=True, **kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the moment in UTC.

        Raises:
            ValidationError: It is something else, or outside of the years 1 to 9999 in UTC.
        """
        if data is serializers.empty:
            return super().run_validation(data)
        moment = parse_utc_datetime(data) if isinstance(data, str) else None
        if moment is None:
            self.fail("datetime_parsing")
        return moment


def parse_utc_datetime(text: str) -> datetime | None:
    """Return a point in time in UTC, or None if a text is none."""
    try:
        # The plus of an offset arrives as a space unless it was escaped.
        moment = parse_datetime(text.replace(" ", "+") if "T" in text else text)
        # Python takes a NUL at the end, and any number of digits of a second.
        if moment is None or not is_storable(text, MAX_DATETIME_LENGTH):
            return None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


class ChoiceListField(serializers.ListField):
    """Some of several words.

    No ``ChoiceField``: drf-spectacular would make it a component that can clash with an enum of
    the host's.
    """

    default_error_messages = {"enum": "Input should be one of {choices}"}

    def __init__(self, *, choices: Iterable[str], **kwargs: Any) -> None:
        self.choices = [str(choice) for choice in choices]
        super().__init__(child=serializers.CharField(), **kwargs)

    def to_internal_value(self, data: Any) -> list[str]:
        """Return the words, each once, in the order of the choices.

        Raises:
            ValidationError: One of them is none of the choices.
        """
        # status[0]x=1 comes as dictionaries.
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
    """A status that active runs have, or a list of these, in JSON."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=ACTIVE_STATUSES, **kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the statuses.

        Raises:
            ValidationError: It is something else, or there is none.
        """
        asked = [data] if isinstance(data, str) else data
        if asked is not serializers.empty and not (isinstance(asked, list) and asked):
            self.fail("enum", choices=", ".join(self.choices))
        return super().run_validation(asked)


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
    """Keys at the top of the metadata of runs, with the values that they must have."""

    default_error_messages = {
        "dict_invalid": "Input should be an object with 1 to {keys} keys. These are of 1 to "
        '{length} characters, without NUL and ", no whole numbers, and do not begin with -',
        "scalar_type": "Input should be text of at most {length} characters, without NUL, a "
        "finite number of up to 64 bits, true, false or null",
    }

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Return the values by their keys, in the order of these.

        Raises:
            ValidationError: It is something else, or nothing.
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
    """A name or an index on the way to an error."""


@extend_schema_field({"type": "object"})
class ContextField(serializers.Field[Any, Any, Any, Any]):
    """The values that an error's message is made from."""


@extend_schema_field(OpenApiTypes.OBJECT)  # not a dict: older drf-spectacular changes it
class SelectionField(serializers.JSONField):
    """Which runs a bulk cancellation was asked to cancel."""


class UtcDateTimeField(serializers.DateTimeField):
    """A point in time, shown in UTC and ISO 8601 whatever the host has set."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(format=ISO_8601, default_timezone=UTC, **kwargs)


class UntranslatedTextField(serializers.CharField):
    """Words for people, which stay English: clients show them beside their own."""

    def to_representation(self, value: Any) -> str:
        """Return the words."""
        with override(None):
            return str(value)


class FailureReasonField(serializers.CharField):
    """Why a run failed: for keys, of an error no more than its class.

    What an error says is for operators: it can name hosts, queries and other tenants' rows.
    """

    def to_representation(self, value: str) -> str:
        """Return the reason, or the class of the error."""
        is_key = isinstance(self.context["request"].auth, ApiKey)
        error = ERROR.match(value)
        if not is_key or settings.EXPOSE_ERRORS or error is None:
            return value
        return f"{error[1]}: see the log"

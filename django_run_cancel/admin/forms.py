"""The form of the confirmation page, and the messages about the result."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from django_run_cancel.admin.columns import shown
from django_run_cancel.cancellation.arguments import (
    MAX_REASON_LENGTH,
    MAX_RUN_ID_LENGTH,
    MAX_RUN_IDS,
)
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import Outcome


class ReasonField(forms.CharField):
    """Text of which a line break counts as one character, as it does in the browser."""

    def to_python(self, value: Any) -> Any:
        """Return the text."""
        return str(super().to_python(value)).replace("\r\n", "\n")


class AnyJSONField(forms.JSONField):
    """A JSONField to which whatever is posted is at worst invalid."""

    def to_python(self, value: Any) -> Any:
        """Return the decoded value.

        Raises:
            ValidationError: It is no JSON, nested too deeply, or holds a number without end.
        """
        try:
            return super().to_python(value)
        except (RecursionError, ValueError):
            raise ValidationError(self.error_messages["invalid"], code="invalid") from None


class ReasonForm(forms.Form):
    """What every page sends that asks before it cancels."""

    token = forms.CharField(widget=forms.HiddenInput, max_length=64)
    next = forms.CharField(widget=forms.HiddenInput, required=False)
    reason = ReasonField(
        label=gettext_lazy("Reason"),
        required=False,
        max_length=MAX_REASON_LENGTH,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60, "autofocus": True}),
        help_text=gettext_lazy("For the record: people will ask why."),
    )

    force = forms.BooleanField(
        label=gettext_lazy("By force"),
        required=False,
        help_text=gettext_lazy(
            "Kills at once what has started, without letting it clean up, where its executor can; "
            "otherwise it is asked to stop first."
        ),
    )


class CancelForm(ReasonForm):
    """What the page sends that asks about single runs. Any number of them is one field."""

    # The ids: what is cancelled is what the page has shown.
    run_ids = AnyJSONField(widget=forms.HiddenInput)
    # Of the page that kills runs of a cancellation.
    cancellation_id = forms.CharField(
        widget=forms.HiddenInput, required=False, max_length=MAX_RUN_ID_LENGTH
    )

    def clean_run_ids(self) -> list[str]:
        """Return the ids.

        Raises:
            ValidationError: They are no ids, or too many.
        """
        run_ids: list[str] = self.cleaned_data["run_ids"]
        if not isinstance(run_ids, list) or not all(
            isinstance(each, str) and is_storable(each, MAX_RUN_ID_LENGTH) for each in run_ids
        ):
            raise ValidationError(_("There are no such runs."))
        if len(run_ids) > MAX_RUN_IDS:
            raise ValidationError(too_many())
        return run_ids


class BulkCancelForm(ReasonForm):
    """What the page sends that asks about all runs of a list."""

    selection = forms.CharField(widget=forms.HiddenInput)
    everything = forms.BooleanField(
        label=gettext_lazy("Yes, all active runs: no filter is set"),
        error_messages={
            "required": gettext_lazy(
                "Nothing has been cancelled: please confirm that you mean all."
            )
        },
    )


def too_many() -> str:
    """Return what to say to somebody who selects more runs than one request takes."""
    return _(
        "More than %(count)s runs are selected, and nothing has been cancelled. Select fewer with "
        "the filters, or use the command manage.py cancel_runs, which takes any number."
    ) % {"count": shown(MAX_RUN_IDS)}


RESULTS = (
    (
        messages.SUCCESS,
        Outcome.CANCELLED,
        ngettext_lazy(
            "%(count)s run has been cancelled.", "%(count)s runs have been cancelled.", "number"
        ),
    ),
    (
        messages.SUCCESS,
        "below",
        ngettext_lazy(
            "%(count)s run below has been cancelled with it.",
            "%(count)s runs below have been cancelled too.",
            "number",
        ),
    ),
    (
        messages.INFO,
        "stopping",
        ngettext_lazy(
            "%(count)s was running and is now stopping.",
            "%(count)s were running and are now stopping.",
            "number",
        ),
    ),
    (
        messages.SUCCESS,
        "forced",
        ngettext_lazy(
            "%(count)s run was still stopping. Its executor is told to kill it.",
            "%(count)s runs were still stopping. Their executors are told to kill them.",
            "number",
        ),
    ),
    (
        messages.INFO,
        Outcome.ALREADY_CANCELLED,
        ngettext_lazy(
            "%(count)s run was cancelled before.", "%(count)s runs were cancelled before.", "number"
        ),
    ),
    (
        messages.WARNING,
        Outcome.ALREADY_FINISHED,
        ngettext_lazy(
            "%(count)s run had finished and stays as it is.",
            "%(count)s runs had finished and stay as they are.",
            "number",
        ),
    ),
    (
        messages.WARNING,
        Outcome.NOT_FOUND,
        ngettext_lazy("%(count)s run does not exist.", "%(count)s runs do not exist.", "number"),
    ),
)
"""What to say of each count, which is ``number`` for the plural and ``count`` as people read it.

Plurals of other languages may differ where English ones do not.
"""

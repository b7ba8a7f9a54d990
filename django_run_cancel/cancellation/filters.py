"""Filters of bulk cancellations: selects runs by JSON values, such as those of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import connections
from django.db.models import QuerySet
from django.db.models.fields.json import KeyTransform
from django.db.models.functions import Collate
from django.db.models.lookups import Exact

from django_run_cancel.db.trees import keys_below
from django_run_cancel.models.fields import exact_collation

LOOKUPS = {
    "status": "status__in",
    "type": "run_type",
    "tenant": "tenant",
    "parent": "parent__run_id",
    "backend": "backend",
    "title": "title",
    "created_after": "created_at__gte",
    "created_before": "created_at__lt",
    "started_after": "started_at__gte",
    "started_before": "started_at__lt",
}
"""Django lookups by filter name. The filters ``ancestor`` and ``metadata`` need more than one."""

FILTERS = (*LOOKUPS, "ancestor", "metadata")


def filter_runs(runs: QuerySet[Any], filters: Mapping[str, Any]) -> QuerySet[Any]:
    """Return the runs that match all filters.

    Args:
        runs: The runs to filter.
        filters: Values by the names in ``FILTERS``. ``status`` is a list; times are ``datetime``;
            ``ancestor`` is the id of a run among ``runs``, and matches its descendants;
            ``metadata`` is a dict of top-level keys and values. The others are strings, compared
            exactly.

    Raises:
        ValueError: ``filters`` is empty, and would match all runs; or a key of the metadata cannot
            be queried on every database.
        KeyError: There is no filter with this name.
    """
    if not filters:
        raise ValueError("Name at least one filter: without any, all runs would match.")
    scope = runs
    for name, value in filters.items():
        if name == "ancestor":
            # Only below runs that the caller may access: the time of the query would reveal how
            # many descendants another run has.
            runs = runs.filter(pk__in=keys_below(scope.filter(run_id=value), runs.db))
        elif name == "metadata":
            for key, wanted in value.items():
                if not is_metadata_key(key):
                    raise ValueError(f"Runs cannot be found by the key {key!r} of their metadata.")
                # Not metadata__<key>: a key may contain ``__`` or be the name of a lookup.
                runs = runs.alias(wanted_metadata=KeyTransform(key, "metadata"))
                runs = runs.filter(wanted_metadata=wanted)
                if connections[runs.db].vendor == "mysql":
                    # MariaDB considers "true" equal to true, and ignores trailing spaces. The
                    # lookup ``contains`` does not, but alone also matches lists with the value.
                    runs = runs.filter(metadata__contains={key: wanted})
        elif name == "title" and (collation := exact_collation(connections[runs.db])):
            # The column's collation ignores case, and on MariaDB trailing spaces.
            runs = runs.filter(Exact(Collate("title", collation), value), title=value)
        else:
            runs = runs.filter(**{LOOKUPS[name]: value})
    return runs


def is_metadata_key(key: str) -> bool:
    """Tell whether every database can query this key of the metadata.

    Django interprets a whole number as the index of a list. SQLite does not find keys with a
    quotation mark, nor MariaDB keys that begin with a minus.
    """
    try:
        int(key)
    except ValueError:
        return bool(key) and '"' not in key and not key.startswith("-")
    return False

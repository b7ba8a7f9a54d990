"""Model fields. Do not move this module: migrations of hosts import it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.lookups import In

from django_run_cancel.db.statements import array_parameter
from django_run_cancel.models.ids import new_run_id
from django_run_cancel.states import RunStatus

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models.expressions import Combinable

    _CharField = models.CharField[str | Combinable, str]
    _TextField = models.TextField[str | Combinable, str]
    _ForeignKey = models.ForeignKey[Any, Any]
else:
    _CharField = models.CharField
    _TextField = models.TextField
    _ForeignKey = models.ForeignKey


class ExactCharField(_CharField):
    """A CharField that compares byte for byte, whatever the collation of the database is.

    MariaDB and MySQL ignore case and trailing spaces by default, so that a request for ``TSK_1``
    would find ``tsk_1``. The C collation of PostgreSQL also lets a prefix search use the index.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the column's type and checks, with the byte-wise collation of this database."""
        return {**super().db_parameters(connection), "collation": exact_collation(connection)}


@ExactCharField.register_lookup
class InArray(In):
    """The lookup ``in``, which uses ``= ANY (array)`` on PostgreSQL.

    PostgreSQL's driver is slow with one placeholder for each of many values.
    """

    def as_postgresql(self, compiler: Any, connection: BaseDatabaseWrapper) -> Any:
        """Return the SQL with an array; Django's own SQL for subqueries and empty lists."""
        values = self.rhs
        if not self.rhs_is_direct_value() or not values or not all(map(_is_text, values)):
            return self.as_sql(compiler, connection)
        lhs, params = self.process_lhs(compiler, connection)
        return f"{lhs} = ANY (%s::text[])", [*params, array_parameter(values)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def exact_collation(connection: Any) -> str | None:
    """Return the name of a byte-wise collation; None if the database compares so by default."""
    if connection.vendor == "postgresql":
        return "C"
    if connection.vendor == "mysql":
        # The plain _bin collations still ignore trailing spaces.
        return "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"
    return None


class UnicodeCharField(_CharField):
    """A CharField that can store any text, even if the charset of a MySQL database is utf8mb3."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the column's type and checks, with a collation of the charset utf8mb4."""
        return {**super().db_parameters(connection), "collation": _unicode_collation(connection)}


class UnicodeTextField(_TextField):
    """A TextField that can store any text, even if the charset of a MySQL database is utf8mb3."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the column's type and checks, with a collation of the charset utf8mb4."""
        return {**super().db_parameters(connection), "collation": _unicode_collation(connection)}


def _unicode_collation(connection: Any) -> str | None:
    return "utf8mb4_general_ci" if connection.vendor == "mysql" else None


class RunIdField(ExactCharField):
    """The public id of a run. If blank on insert, it is generated with the prefix of the type."""

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        """Return the id to store, generating one for a new run that has none."""
        value: str = getattr(model_instance, self.attname)
        if add and not value:
            value = new_run_id(getattr(model_instance, "run_type"))  # noqa: B009  # the model has no such field for mypy
            setattr(model_instance, self.attname, value)
        return value


class StatusField(ExactCharField):
    """The status of a run. On insert it must be one of ``RunStatus``."""

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        """Return the status to store.

        Raises:
            ValueError: A new run has a status that is not in ``RunStatus``.
        """
        value = super().pre_save(model_instance, add)
        if add and value not in RunStatus.values:
            statuses = ", ".join(RunStatus.values)
            raise ValueError(f"status must be one of {statuses}, not {value!r}.")
        return value


class ParentField(_ForeignKey):
    """A foreign key of the run model to itself that migrations reference by the model's name.

    Django would reference ``settings.RUN_CANCEL_RUN_MODEL``, which most hosts do not set. The
    argument ``swappable=False`` does not help, as Django drops it when it clones the field.
    """

    swappable_setting = None

"""Model fields. Migrations of hosts name this module: it does not move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.lookups import In

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
    """The lookup ``in`` of texts that compares with one array on PostgreSQL.

    A driver parses a placeholder for each of many values far more slowly.
    """

    def as_postgresql(self, compiler: Any, connection: BaseDatabaseWrapper) -> Any:
        """Return the SQL of PostgreSQL; that of Django for a subquery, and for no value."""
        values = self.rhs
        if not self.rhs_is_direct_value() or not values or not all(map(_is_text, values)):
            return self.as_sql(compiler, connection)
        lhs, params = self.process_lhs(compiler, connection)
        return f"{lhs} = ANY (%s::text[])", [*params, [str(value) for value in values]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def exact_collation(connection: Any) -> str | None:
    """Return the collation that compares byte for byte; None if the default one does."""
    if connection.vendor == "postgresql":
        return "C"
    if connection.vendor == "mysql":
        # The plain _bin collations still ignore trailing spaces.
        return "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"
    return None


class UnicodeCharField(_CharField):
    """A CharField that holds any text, also where the database's own charset is MySQL's utf8mb3."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the column's type and checks, with a collation of the charset utf8mb4."""
        return {**super().db_parameters(connection), "collation": _unicode_collation(connection)}


class UnicodeTextField(_TextField):
    """The same for long texts."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the column's type and checks, with a collation of the charset utf8mb4."""
        return {**super().db_parameters(connection), "collation": _unicode_collation(connection)}


def _unicode_collation(connection: Any) -> str | None:
    return "utf8mb4_general_ci" if connection.vendor == "mysql" else None


class RunIdField(ExactCharField):
    """The public id of a run; filled on insert, with the prefix of the run's type, when blank."""

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        """Return the id to store, generating one for a new run that has none."""
        value: str = getattr(model_instance, self.attname)
        if add and not value:
            value = new_run_id(getattr(model_instance, "run_type"))  # noqa: B009
            setattr(model_instance, self.attname, value)
        return value


class StatusField(ExactCharField):
    """The status of a run; a run is not created with another than those in ``RunStatus``."""

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        """Return the status to store.

        Raises:
            ValueError: It is none.
        """
        value = super().pre_save(model_instance, add)
        if add and value not in RunStatus.values:
            statuses = ", ".join(RunStatus.values)
            raise ValueError(f"status must be one of {statuses}, not {value!r}.")
        return value


class ParentField(_ForeignKey):
    """A foreign key of the run model to itself, named plainly in migrations.

    Django would write ``settings.RUN_CANCEL_RUN_MODEL`` instead, which most hosts do not set, and
    it forgets ``swappable=False`` when it clones the field.
    """

    swappable_setting = None

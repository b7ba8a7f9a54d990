"""Model fields. Migrations of hosts name this module: it does not move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models

from django_run_cancel.ids import new_run_id

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    _CharField = models.CharField[Any, Any]
    _ForeignKey = models.ForeignKey[Any, Any]
else:
    _CharField = models.CharField
    _ForeignKey = models.ForeignKey


class ExactCharField(_CharField):
    """A CharField that compares byte for byte, whatever the collation of the database is.

    MariaDB and MySQL ignore case and trailing spaces by default, so that a request for ``TSK_1``
    would find ``tsk_1``. The C collation of PostgreSQL also lets a prefix search use the index.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the column's type and checks, with the byte-wise collation of this database."""
        return {**super().db_parameters(connection), "collation": _exact_collation(connection)}


def _exact_collation(connection: Any) -> str | None:
    if connection.vendor == "postgresql":
        return "C"
    if connection.vendor == "mysql":
        # The plain _bin collations still ignore trailing spaces.
        return "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"
    return None


class RunIdField(ExactCharField):
    """The public id of a run; filled on insert, with the prefix of the run's type, when blank."""

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        """Return the id to store, generating one for a new run that has none."""
        value: str = getattr(model_instance, self.attname)
        if add and not value:
            value = new_run_id(getattr(model_instance, "run_type"))  # noqa: B009
            setattr(model_instance, self.attname, value)
        return value


class ParentField(_ForeignKey):
    """A foreign key of the run model to itself, named plainly in migrations.

    Django would write ``settings.RUN_CANCEL_RUN_MODEL`` instead, which most hosts do not set, and
    it forgets ``swappable=False`` when it clones the field.
    """

    swappable_setting = None

"""The crawler's own model. Crawls are not here: they are runs of django-run-cancel."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models


class Site(models.Model):
    """A site that is crawled for a customer."""

    name = models.CharField(max_length=100, unique=True)
    base_url = models.URLField()
    customer = models.SlugField(
        max_length=64, help_text="Tenant of the crawls: the customer's API keys reach these only."
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, help_text="Who looks after it."
    )

    objects: ClassVar[models.Manager[Site]] = models.Manager()

    def __str__(self) -> str:
        return self.name

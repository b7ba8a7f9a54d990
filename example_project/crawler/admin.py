"""Admin of the crawler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest

from crawler.crawls import start_crawl
from crawler.models import Site

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Site]
else:
    _ModelAdmin = admin.ModelAdmin


@admin.register(Site)
class SiteAdmin(_ModelAdmin):
    """Sites, and a way to have them crawled."""

    list_display = ("name", "base_url", "customer", "owner")
    list_filter = ("customer",)
    search_fields = ("name", "base_url")
    actions = ("crawl",)
    # Django 5.2 warns unless it is told.
    formfield_overrides: ClassVar[dict[Any, Any]] = {models.URLField: {"assume_scheme": "https"}}

    @admin.action(description="Crawl the selected sites", permissions=["change"])
    def crawl(self, request: HttpRequest, sites: QuerySet[Site]) -> None:
        """Queue a crawl of each site."""
        for site in sites:
            crawl = start_crawl(site)
            self.message_user(request, f"Queued {crawl}: {crawl.run_id}", messages.SUCCESS)

"""The app."""

from __future__ import annotations

from django.apps import AppConfig


class CrawlerConfig(AppConfig):
    """Configuration of the app."""

    name = "crawler"
    default_auto_field = "django.db.models.BigAutoField"

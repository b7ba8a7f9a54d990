"""A host whose admin is jazzmin."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = ["jazzmin", *INSTALLED_APPS]
# The theme writes inline.
MIDDLEWARE = [name for name in MIDDLEWARE if "content_security_policy" not in name]
# Its default loads a font from another host.
JAZZMIN_SETTINGS = {"use_google_fonts_cdn": False}

"""A host whose admin is django-unfold."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = ["unfold", *INSTALLED_APPS, "tests.browser.unfold_host"]
# The theme writes inline.
MIDDLEWARE = [name for name in MIDDLEWARE if "content_security_policy" not in name]

"""A host whose admin is grappelli."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = ["grappelli", *INSTALLED_APPS]
ROOT_URLCONF = "tests.browser.grappelli_urls"
# The theme writes inline.
MIDDLEWARE = [name for name in MIDDLEWARE if "content_security_policy" not in name]

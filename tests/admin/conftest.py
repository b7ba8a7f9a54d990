"""Users of the admin: one who may cancel runs, and one who may only view them."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.admin.helpers import logged_in


@pytest.fixture
def operator() -> Client:
    return logged_in("operator", "view_run", "view_job", "cancel_run")


@pytest.fixture
def looker() -> Client:
    return logged_in("looker", "view_run", "view_job")

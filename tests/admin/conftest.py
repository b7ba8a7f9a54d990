"""Users of the admin: one who may do all, one who may cancel runs, one who may view them."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.admin.helpers import logged_in


@pytest.fixture
def chief() -> Client:
    return logged_in("chief", is_superuser=True)


@pytest.fixture
def operator() -> Client:
    return logged_in("operator", "view_run", "view_job", "cancel_run")


@pytest.fixture
def looker() -> Client:
    return logged_in("looker", "view_run", "view_job")

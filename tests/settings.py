"""Settings of the test suite. ``DATABASE_URL`` chooses the database; SQLite by default."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environ
import pymysql

pymysql.install_as_MySQLdb()

SECRET_KEY = "only for tests"
USE_TZ = True
TIME_ZONE = "America/St_Johns"  # not UTC: mistakes with time zones show
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "django_run_cancel",
    "tests.reports",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "tests.browser.middleware.content_security_policy",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# A file, not :memory:, so that threads and server processes meet in it.
SQLITE_FILE = Path(tempfile.gettempdir()) / f"run_cancel_tests_{os.getpid()}.sqlite3"

DATABASE: dict[str, Any] = environ.Env.db_url_config(
    os.environ.get("DATABASE_URL", f"sqlite:///{SQLITE_FILE}")
)
DATABASE.setdefault("OPTIONS", {})
if DATABASE["ENGINE"].endswith("sqlite3"):
    DATABASE["TEST"] = {"NAME": str(SQLITE_FILE)}
    DATABASE["OPTIONS"] |= {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF",
    }
elif DATABASE["ENGINE"].endswith("postgresql"):
    # No test needs what was committed to survive a power failure.
    DATABASE["OPTIONS"] |= {"options": "-c synchronous_commit=off"}
else:
    DATABASE["OPTIONS"] |= {"charset": "utf8mb4"}
    DATABASE["TEST"] = {"CHARSET": "utf8mb4", "COLLATION": "utf8mb4_general_ci"}
DATABASES = {"default": DATABASE}

# The executors that live in a database, when they are installed.
if find_spec("django_tasks_db"):
    INSTALLED_APPS.append("django_tasks_db")
    TASKS_BACKEND = os.environ.get("TASKS_BACKEND", "django_tasks_db.DatabaseBackend")
    TASKS = {"default": {"BACKEND": TASKS_BACKEND, "QUEUES": []}}
if find_spec("procrastinate") and DATABASE["ENGINE"].endswith("postgresql"):
    INSTALLED_APPS.append("procrastinate.contrib.django")
    PROCRASTINATE_IMPORT_PATHS = [
        "tests.backends.procrastinate_jobs",
        "tests.integrations.procrastinate_host",
    ]
    PROCRASTINATE_ON_APP_READY = os.environ.get("PROCRASTINATE_ON_APP_READY")

# Of the runs that make_run() makes.
RUN_CANCEL_BACKENDS = {"dummy": {"BACKEND": "django_run_cancel.testing.DummyBackend"}}

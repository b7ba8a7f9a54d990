"""Settings of the example. What django-run-cancel needs of them is marked with its name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import environ

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()

DEBUG: bool = env.bool("DEBUG", default=True)
SECRET_KEY: str = env.str("SECRET_KEY", default="django-insecure-only-for-development")
ALLOWED_HOSTS: list[str] = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    *env.list("ALLOWED_HOSTS", default=[]),
]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    # django-run-cancel, and what its API is built with:
    "django_run_cancel",
    "rest_framework",
    "drf_spectacular",
    # Swagger UI as static files of this site:
    "drf_spectacular_sidecar",
    "crawler",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

STATIC_URL = "static/"
TIME_ZONE = "UTC"
USE_TZ = True

DATABASE_OPTIONS: dict[str, dict[str, Any]] = {
    "django.db.backends.sqlite3": {
        # Take the write lock when a transaction begins: one that reads first and asks for it later
        # fails at once, without waiting, if another has written in between.
        "transaction_mode": "IMMEDIATE",
        "timeout": 5,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    },
    "django.db.backends.mysql": {"charset": "utf8mb4", "isolation_level": "read committed"},
}


def database(url: str) -> dict[str, Any]:
    """Return the settings of the database at a URL."""
    config: dict[str, Any] = env.db_url_config(url)
    options = DATABASE_OPTIONS.get(config["ENGINE"], {}) | config.get("OPTIONS", {})
    return {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True} | config | {"OPTIONS": options}


DATABASE_URL: str = env.str("DATABASE_URL", default="") or f"sqlite:///{BASE_DIR / 'db.sqlite3'}"
DATABASES = {"default": database(DATABASE_URL)}

if DATABASES["default"]["ENGINE"] == "django.db.backends.mysql":
    import pymysql

    pymysql.install_as_MySQLdb()

CRAWLER_HOSTS: list[str] = env.list("CRAWLER_HOSTS", default=["127.0.0.1"])

# django-run-cancel: who works on crawls. A process for each by default; Celery if it has a broker.
RUN_CANCEL_BACKENDS: dict[str, Any] = {
    "process": {
        "BACKEND": "django_run_cancel.backends.process.ProcessBackend",
        "OPTIONS": {"COMMAND": [sys.executable, str(BASE_DIR / "manage.py"), "crawl", "{run_id}"]},
    }
}
CRAWLER_BACKEND = "process"

CELERY_BROKER_URL: str = env.str("CELERY_BROKER_URL", default="")
CELERY_TASK_DEFAULT_QUEUE: str = env.str("CELERY_TASK_DEFAULT_QUEUE", default="crawler")
if CELERY_BROKER_URL:
    RUN_CANCEL_BACKENDS["celery"] = {
        "BACKEND": "django_run_cancel.backends.celery.CeleryBackend",
        "OPTIONS": {"APP": "config.celery.app", "TASK": "crawler.tasks.crawl"},
    }
    CRAWLER_BACKEND = "celery"

# django-run-cancel: how long a cancelled crawl may take to stop before it is killed.
RUN_CANCEL_GRACE_SECONDS: float = env.float("RUN_CANCEL_GRACE_SECONDS", default=30)

SPECTACULAR_SETTINGS = {
    "TITLE": "Site crawler",
    "OAS_VERSION": "3.1.0",
    # Nothing on the documentation page comes from another host.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "validatorUrl": None},
}

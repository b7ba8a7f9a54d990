"""Cancel a run over HTTP with the installed package, in a project made from nothing.

Runs outside the repository, so that a file missing from the wheel is missed here too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from wsgiref.simple_server import make_server

SOURCE = Path(__file__).resolve().parent.parent / "django_run_cancel"

SETTINGS = """
SECRET_KEY = "smoke"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "django_run_cancel",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "smoke.sqlite3",
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }
}
"""

URLS = """
from django.urls import include, path

urlpatterns = [path("v1/", include("django_run_cancel.api.urls"))]
"""


def django(*args: str) -> str:
    """Run a management command and return what it prints."""
    command = [sys.executable, "-W", "error", "-m", "django", *args]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Migrate, create a key, cancel over HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("smoke_settings.py").write_text(SETTINGS)
        Path("urls.py").write_text(URLS)
        os.environ |= {"DJANGO_SETTINGS_MODULE": "smoke_settings", "PYTHONPATH": folder}
        sys.path.insert(0, folder)
        django("check", "--fail-level", "WARNING")
        django("makemigrations", "--check", "--dry-run")
        django("migrate", "--verbosity", "0")
        key = django("create_api_key", "smoke").splitlines()[-1]

        import django as django_package
        from django.core.wsgi import get_wsgi_application

        application = get_wsgi_application()
        import django_run_cancel
        from django_run_cancel.models import get_run_model

        package = Path(django_run_cancel.__file__).parent
        assert "site-packages" in package.parts, package
        for file in SOURCE.rglob("*"):  # templates, styles and translations too
            name = file.relative_to(SOURCE)
            assert "__pycache__" in name.parts or (package / name).exists(), name
        run = get_run_model()._default_manager.create(status="running")
        server = make_server("127.0.0.1", 0, application)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.server_port}/v1/runs/cancel",
            data=json.dumps({"run_ids": [run.run_id, "nope"]}).encode(),
            headers={"content-type": "application/json", "x-api-key": key},
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            answer = json.load(response)
        server.shutdown()
        assert answer == {"cancelled": [run.run_id], "failed": ["nope"]}, answer
        run.refresh_from_db()
        assert run.status == "cancelled"
        version = django_package.get_version()
        print(f"The wheel works: Python {sys.version.split()[0]}, Django {version}.")


if __name__ == "__main__":
    main()

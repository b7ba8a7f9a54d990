"""Lint the OpenAPI document with the recommended rules of Spectral and Redocly.

``python -m tools.lint_openapi FOLDER``: the folder is where npm installs both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ["@stoplight/spectral-cli@6", "@redocly/cli@2"]


def main(folder: Path) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from django_run_cancel.api.schema import generate_document

    folder.mkdir(parents=True, exist_ok=True)
    document, rules = folder / "openapi.json", folder / "spectral.yaml"
    document.write_text(json.dumps(generate_document(), indent=2))
    rules.write_text('extends: ["spectral:oas"]\n')
    binaries = folder / "node_modules" / ".bin"
    if not (binaries / "redocly").exists():
        options = ["--no-save", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(["npm", "install", "--prefix", folder, *options, *PACKAGES], check=True)
    spectral = [binaries / "spectral", "lint", "--fail-severity", "warn", "--ruleset", rules]
    for command in ([*spectral, document], [binaries / "redocly", "lint", document]):
        subprocess.run(command, check=True, cwd=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

"""The languages of the catalogues, and what reads a catalogue."""

from __future__ import annotations

import gettext
from pathlib import Path
from typing import Any

from tools import messages

LANGUAGES = [language for language in messages.PLURALS if language != "en"]

# Words that two languages share.
SAME = {"API", "Executor", "Python", "Type", "backend", "cascade", "name", "status", "type", "via"}
SAME |= {"workflow", *(f"%(count)s {unit}" for unit in ("s", "min", "h", "d"))}
SAME |= {"Reports"}  # an app of the tests


def strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def reader(path: Path) -> gettext.GNUTranslations:
    with path.open("rb") as file:
        return gettext.GNUTranslations(file)

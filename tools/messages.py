"""Keeps the catalogues in ``django_run_cancel/locale`` as the sources want them.

``make messages`` adds new messages, drops those that are gone, keeps what is translated, compiles,
and lists what is left to translate. GNU gettext is not needed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from babel.messages import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.utils.translation.template import templatize

PACKAGE = Path(__file__).parent.parent / "django_run_cancel"
LOCALE = PACKAGE / "locale"

# As in the main catalogues of Django, which in a host's process are one with these.
MANY = "n != 0 && n % 1000000 == 0 ? 1 : 2"
PLURALS = {
    "en": "nplurals=2; plural=(n != 1);",
    "de": "nplurals=2; plural=(n != 1);",
    "es": f"nplurals=3; plural=n == 1 ? 0 : {MANY};",
    "fr": f"nplurals=3; plural=(n == 0 || n == 1) ? 0 : {MANY};",
    "zh_Hans": "nplurals=1; plural=0;",
}

KEYWORDS = {
    **DEFAULT_KEYWORDS,
    **{f"{name}_lazy": DEFAULT_KEYWORDS[name] for name in ("gettext", "ngettext", "pgettext")},
    "npgettext_lazy": DEFAULT_KEYWORDS["npgettext"],
}

HEADERS = {
    "Language",
    "Plural-Forms",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
}


class StableCatalog(Catalog):
    """A catalogue without dates and versions: it changes when its messages do."""

    def __init__(self, language: str) -> None:
        super().__init__(
            language,
            header_comment="# Translations of django-run-cancel. Kept by: make messages",
            fuzzy=False,
        )
        Catalog.mime_headers.fset(self, [("Plural-Forms", PLURALS[language])])

    @property
    def mime_headers(self) -> list[tuple[str, str]]:
        kept = [header for header in super().mime_headers if header[0] in HEADERS]
        return [("Project-Id-Version", "django-run-cancel"), *kept]


def messages() -> Iterator[tuple[Path, Any, list[str], str | None]]:
    """Yield file, message (a tuple when it has a plural), comments and context."""
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html")]):
        source = path.read_text()
        if path.suffix == ".html":
            # To the eye of a Python tokenizer, which minds indentation.
            lines = templatize(source, origin=str(path)).splitlines()
            source = "\n".join(line.lstrip() for line in lines)
        found = extract("python", io.BytesIO(source.encode()), KEYWORDS, ["Translators:"])
        for _line, message, comments, context in found:
            yield path, message, comments, context


def folder(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES"


def stored(language: str) -> Catalog:
    """Return the catalogue as it is in its .po file."""
    path = folder(language) / "django.po"
    if not path.exists():
        return Catalog(language)
    with path.open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def wanted(language: str) -> Catalog:
    """Return the catalogue with exactly the messages of the sources."""
    old = stored(language)
    new = StableCatalog(language)
    for path, message, comments, context in messages():
        known = old.get(message, context)
        new.add(
            message,
            # One that has got or lost its plural has to be translated again.
            known.string if known and known.pluralizable == isinstance(message, tuple) else "",
            [(path.relative_to(PACKAGE.parent).as_posix(), None)],
            auto_comments=comments,
            context=context,
        )
    return new


def compiled(catalog: Catalog) -> bytes:
    """Return the bytes of the .mo file; what is not translated is not in there."""
    translated = deepcopy(catalog)
    for message in catalog:
        if message.id and not is_translated(message):
            translated.delete(message.id, message.context)
    file = io.BytesIO()
    write_mo(file, translated)
    return file.getvalue()


def is_translated(message: Any) -> bool:
    return all([message.string] if isinstance(message.string, str) else message.string)


def main() -> None:
    for language in PLURALS:
        catalog = wanted(language)
        folder(language).mkdir(parents=True, exist_ok=True)
        with (folder(language) / "django.po").open("wb") as file:
            write_po(file, catalog, width=100, include_lineno=False)
        (folder(language) / "django.mo").write_bytes(compiled(catalog))
        left = [message for message in catalog if message.id and not is_translated(message)]
        if left and language != "en":
            path = folder(language) / "django.po"
            print(f"{path}: {len(left)} left to translate, such as {left[0].id!r}")


if __name__ == "__main__":
    main()

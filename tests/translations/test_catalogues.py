"""The catalogues hold exactly the messages of the sources, translated."""

from __future__ import annotations

import ast
import io
import itertools
import re
from pathlib import Path
from typing import Any

import django
import pytest
import rest_framework
from babel.messages import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

from tests.translations.helpers import LANGUAGES, SAME, reader, strings
from tools import messages

FIX = "run: make messages, translate what it lists, and run it again"


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)[a-z]|%[a-z%]|\{\w*\}", text))


def keys(catalog: Catalog) -> set[tuple[Any, str | None]]:
    return {(message.id, message.context) for message in catalog if message.id}


def texts(catalog: Catalog) -> dict[Any, Any]:
    return {
        (tuple(strings(message.id)), message.context): tuple(strings(message.string))
        for message in catalog
        if message.id
    }


@pytest.mark.parametrize("language", messages.PLURALS)
class TestCatalogue:
    def test_has_the_messages_of_the_sources(self, language: str) -> None:
        found, wanted = messages.stored(language), messages.wanted(language)
        assert keys(found) == keys(wanted), FIX
        assert not found.obsolete, FIX

    def test_is_complete(self, language: str) -> None:
        for message in messages.stored(language):
            if message.id:
                assert not message.fuzzy, (message.id, FIX)
                # The sources are in English.
                assert messages.is_translated(message) == (language != "en"), (message.id, FIX)

    def test_has_the_placeholders_of_the_sources(self, language: str) -> None:
        for message in messages.stored(language):
            expected = placeholders(strings(message.id)[0])
            for string in filter(None, [*strings(message.id), *strings(message.string)]):
                assert not message.id or placeholders(string) == expected, message.id

    def test_has_the_plurals_of_the_language(self, language: str) -> None:
        found = messages.stored(language)
        assert f"nplurals={found.num_plurals}; plural={found.plural_expr}" == messages.PLURALS[
            language
        ].removesuffix(";")
        for message in found:
            if message.pluralizable:
                assert len(message.string) == found.num_plurals, message.id
        if django.VERSION >= (6, 1):  # older ones have two plurals for French
            main = Path(django.__file__).parent / "conf/locale" / language / "LC_MESSAGES/django.po"
            with main.open("rb") as file:
                assert read_po(file).plural_expr == found.plural_expr

    def test_is_compiled(self, language: str) -> None:
        expected = io.BytesIO(messages.compiled(messages.stored(language)))
        found = read_mo(io.BytesIO((messages.folder(language) / "django.mo").read_bytes()))
        assert texts(found) == texts(read_mo(expected)), FIX

    def test_agrees_with_the_catalogues_of_django(self, language: str) -> None:
        """All catalogues of a process become one, in which those of Django can win."""
        place = f"locale/{language}/LC_MESSAGES/django.mo"
        django_folder, drf_folder = (Path(m.__file__).parent for m in (django, rest_framework))
        paths = [*django_folder.glob(f"c*/**/{place}"), *drf_folder.glob(place)]
        assert len(paths) > 5
        for theirs, message in itertools.product(map(reader, paths), messages.stored(language)):
            singular = strings(message.id)[0]
            if singular and message.context is None and theirs.gettext(singular) != singular:
                assert theirs.gettext(singular) == message.string, (
                    f"{message.id}: Django says {theirs.gettext(singular)!r}. "
                    "Say the same, or give the message a context (pgettext)."
                )


def test_catalogues__one_for_each_language() -> None:
    assert {path.name for path in messages.LOCALE.iterdir()} == set(messages.PLURALS)


def test_catalogues__translated_not_copied() -> None:
    for language in LANGUAGES:
        copied = {
            message.id
            for message in messages.stored(language)
            if message.id and strings(message.string)[0] == strings(message.id)[0]
        }
        assert copied <= SAME, language


def test_sources__names_that_are_extracted() -> None:
    """Under another name, a message would be missing from the catalogues without a word."""
    for path in messages.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation":
                for name in node.names:
                    renamed = name.name in {"gettext", "gettext_lazy"} and name.asname == "_"
                    assert renamed or name.asname is None, path
            elif isinstance(node, ast.ImportFrom) and node.module == "django.utils":
                assert "translation" not in {name.name for name in node.names}, path


def test_make_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(messages, "PACKAGE", tmp_path / "app")
    monkeypatch.setattr(messages, "LOCALE", tmp_path / "app/locale")
    (tmp_path / "app").mkdir()
    source, template = tmp_path / "app/a.py", tmp_path / "app/b.html"
    source.write_text('_("old"), ngettext_lazy("%d run", "%d runs", n), pgettext_lazy("c", "Run")')
    template.write_text(
        "{% load i18n %}\n  <p>{% blocktranslate count n=x %}{{ n }} key{% plural %}{{ n }} keys"
        '{% endblocktranslate %}\n<p>{% translate "Run" context "d" %}</p>'
    )
    messages.main()
    assert "de/LC_MESSAGES/django.po: 5 left to translate" in capsys.readouterr().out
    expected = {("%d run", "%d runs"), ("%(n)s key", "%(n)s keys"), "old", "Run"}
    assert {message_id for message_id, _context in keys(messages.stored("de"))} == expected
    assert {context for _id, context in keys(messages.stored("de"))} == {None, "c", "d"}

    path = messages.folder("de") / "django.po"
    path.write_text(path.read_text().replace('"old"\nmsgstr ""', '"old"\nmsgstr "alt"'))
    template.unlink()
    source.write_text('_("old"), _("new")')
    messages.main()
    assert "django.po: 1 left to translate, such as 'new'" in capsys.readouterr().out
    found = messages.stored("de")
    assert texts(found) == {(("old",), None): ("alt",), (("new",), None): ("",)}
    assert reader(messages.folder("de") / "django.mo").gettext("old") == "alt"
    before = path.read_bytes()
    messages.main()
    assert path.read_bytes() == before

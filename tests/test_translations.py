"""The catalogues hold exactly the messages of the sources, translated, and the admin shows them."""

from __future__ import annotations

import ast
import gettext
import io
import itertools
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import django
import pytest
import rest_framework
from babel.messages import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from django.contrib.auth import get_user_model
from django.db import transaction
from django.test import Client
from django.utils import translation

from django_run_cancel.admin import base
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import CancellationState, RunStatus, StopState
from tests.admin.helpers import CANCEL, KEYS, KILL, LIST, RECORDS, hidden, page_of, text
from tests.helpers import ApiClient, ids, make_run, make_runs
from tools import messages

LANGUAGES = [language for language in messages.PLURALS if language != "en"]
FIX = "run: make messages, translate what it lists, and run it again"

# Words that two languages share.
SAME = {"API", "Executor", "Python", "Type", "backend", "cascade", "name", "status", "type", "via"}
SAME |= {"workflow", *(f"%(count)d {unit}" for unit in ("s", "min", "h", "d"))}
SAME |= {"Reports"}  # an app of the tests

EARLY = "2026-01-01T00:00Z"

ITEMS = "/admin/django_run_cancel/cancellationitem/"
HISTORY = "history/"


class Texts(HTMLParser):
    """What a page says, by text node and by attribute that is read out or shown."""

    SHOWN = ("title", "placeholder", "aria-label", "alt")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.hidden = ""
        self.feed(page)

    def add(self, text: str) -> None:
        if text := " ".join(text.split()).strip():
            self.found.add(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden = tag if tag in {"script", "style"} else ""
        shown = {*self.SHOWN, "value"} if ("type", "submit") in attrs else self.SHOWN
        for name, value in attrs:
            if name in shown:
                self.add(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = ""

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.add(data)


@pytest.fixture
def locale_middleware(settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE]
    settings.MIDDLEWARE.insert(1, "django.middleware.locale.LocaleMiddleware")


@pytest.fixture
def chief(locale_middleware: None) -> Client:
    user = get_user_model().objects.create_superuser("Qchief", password="x")
    client = Client()
    client.force_login(user)
    return client


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)[a-z]|%[a-z%]|\{\w*\}", text))


def strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def visit(client: Client) -> Iterator[str]:
    """Yield the pages of the admin. Whatever is stored has a Q in front, or digits in it."""
    for status in RunStatus:
        if status != RunStatus.CANCELLED:
            make_run(status, title="Qrun", tenant="Qtenant", run_type="Qtype", failure_reason="Q")
    stopped = make_runs(len(StopState), title="Qstopped")
    cancel_runs(ids(stopped), requested_by="Qsomebody", reason="Qreason", source="command")
    for run, state in zip(stopped, StopState, strict=True):
        get_run_model()._base_manager.filter(pk=run.pk).update(stop_state=state)
    lonely = make_run(title="Qlonely")
    cancel_runs([lonely.run_id], requested_by="Qsomebody", source="api")

    def get(url: str) -> str:
        return text(client.get(url))

    yield from map(get, ("/admin/", "/admin/django_run_cancel/", LIST, f"{LIST}?q=Qno"))
    yield from map(get, (page_of(make_run("running")), page_of(stopped[0]), page_of(lonely)))

    parents = make_runs(2, "running", title="Qparent")
    for parent in parents * 2:
        parent.create_child(title="Qchild")
    yield get(page_of(parents[0]))
    CancellationItem.objects.update(next_attempt_at=EARLY, escalates_at=EARLY)
    yield from map(get, (page_of(stopped[0]), LIST))
    get_run_model()._base_manager.filter(pk=stopped[0].pk).update(finished_at=EARLY)
    CancellationItem.objects.update(next_attempt_at=None)
    yield from map(get, (page_of(stopped[0]), LIST))
    everything = get_run_model()._base_manager.order_by("pk")
    action = {"action": "cancel_selected"}
    page = client.post(LIST, {**action, "_selected_action": [run.pk for run in everything]})
    yield text(page)
    yield get(f"{CANCEL}?run_id=Qunknown")
    yield get(f"{KILL}?run_id=Qunknown")
    stubborn = make_run("running", title="Qstubborn")
    cancel_runs([stubborn.run_id], requested_by="Qsomebody", reason="Qreason")
    killing = client.get(f"{KILL}?run_id={stubborn.run_id}")
    yield text(killing)
    yield text(client.post(KILL, hidden(killing), follow=True))
    yield get(page_of(stubborn))
    yield get(page_of(stubborn).replace("change/", HISTORY))
    yield get(f"{CANCEL}?run_id={lonely.run_id}")
    sent = hidden(page)
    sent["run_ids"] += " Qunknown Qunknown2"
    yield text(client.post(CANCEL, {**sent, "reason": "Qwhy"}, follow=True))
    yield text(client.post(CANCEL, {**sent, "reason": "Qelse"}))
    yield text(client.post(CANCEL, {**sent, "token": "1", "run_ids": "Q " * (MAX_RUN_IDS + 1)}))
    yield get(f"{page_of(parents[0])}".replace("change/", HISTORY))
    single = make_run("running")
    page = client.post(LIST, {**action, "_selected_action": [single.pk]})
    yield text(page)
    yield text(client.post(CANCEL, hidden(page), follow=True))
    yield text(client.post(LIST, {**action, "_selected_action": "no-key"}, follow=True))

    yield from visit_bulk(client)
    yield from map(get, (RECORDS, f"{RECORDS}?q=Qno", ITEMS))
    for record in Cancellation.objects.all():
        yield get(f"{RECORDS}{record.pk}/change/")
    for item in CancellationItem.objects.order_by("-pk")[:3]:
        yield get(f"{ITEMS}{item.pk}/change/")

    yield get(f"{KEYS}add/")
    yield text(client.post(f"{KEYS}add/", {"name": "Qkey", "tenant": "Qtenant"}))
    past = {"name": "Qkey", "expires_at_0": "2001-01-01", "expires_at_1": "00:00"}
    yield text(client.post(f"{KEYS}add/", past))
    key = ApiKey.objects.get()
    yield get(f"{KEYS}{key.pk}/change/")
    revoke = {"action": "revoke", "_selected_action": [key.pk]}
    yield text(client.post(KEYS, revoke))
    revoke["confirmed"] = "yes"
    yield text(client.post(KEYS, revoke, follow=True))
    yield text(client.post(KEYS, revoke, follow=True))
    yield get(f"{KEYS}{key.pk}/{HISTORY}")


def visit_bulk(client: Client) -> Iterator[str]:
    """Yield the pages of a bulk cancellation: before it, while it waits, and when it has failed."""
    url = f"{LIST}cancel-all/"
    yield text(client.get(f"{url}?nonsense=1", follow=True))
    yield text(client.get(f"{url}?tenant=Qtenant"))
    yield text(client.get(f"{url}?tenant=Qnone"))
    page = client.get(url)
    yield text(page)
    yield text(client.post(url, hidden(page)))
    yield text(client.post(url, {**hidden(page), "everything": "on"}, follow=True))
    record = Cancellation.objects.latest("pk")
    pages = [f"{RECORDS}{record.pk}/{page}/" for page in ("change", "abort", "retry")]
    for state in CancellationState:
        Cancellation.objects.filter(pk=record.pk).update(state=state)
        yield text(client.get(pages[0]))
    yield from (text(client.get(page)) for page in pages)
    yield from (text(client.post(page, follow=True)) for page in pages[1:] * 2)
    record.chunks.update(state="failed", last_error="Q")
    yield from (text(client.get(page)) for page in pages)


def keys(catalog: Catalog) -> set[tuple[Any, str | None]]:
    return {(message.id, message.context) for message in catalog if message.id}


def texts(catalog: Catalog) -> dict[Any, Any]:
    return {
        (tuple(strings(message.id)), message.context): tuple(strings(message.string))
        for message in catalog
        if message.id
    }


def reader(path: Path) -> gettext.GNUTranslations:
    with path.open("rb") as file:
        return gettext.GNUTranslations(file)


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


def in_language(language: str, client: Client) -> Client:
    client.defaults["HTTP_ACCEPT_LANGUAGE"] = language.replace("_", "-").lower()
    return client


@pytest.mark.django_db
def test_admin__nothing_left_in_english(chief: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the same in English and in German is data, or the same word."""
    monkeypatch.setattr(base, "MAX_COUNTED", 20)
    seen = {}
    for language in ("en", "de"):
        with transaction.atomic():
            pages = visit(in_language(language, chief))
            seen[language] = set().union(*(Texts(page).found for page in pages))
            transaction.set_rollback(True)
    for shown in ("Yes, cancel 1 run", "Yes, revoke", "1 key no longer works.", "nothing"):
        assert shown in seen["en"], "the test does not get where it should"
    place = "locale/en/LC_MESSAGES/django.po"
    of_django = set()
    django_folder = Path(django.__file__).parent
    for path in (django_folder / "conf" / place, *django_folder.glob(f"contrib/a*/{place}")):
        with path.open("rb") as file:
            of_django |= {text for message in read_po(file) for text in strings(message.id)}
    left = {
        text.strip("\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} ").removesuffix(":")
        for text in seen["en"] & seen["de"]
    } - of_django
    data = {"dummy", "job", "Job", "Hostapp", "task", "False", "True"}
    data |= {"python manage.py deliver_cancellations"}
    data |= {"Pagination job entries"}  # of Django 6.1, untranslated
    # Of the apps of executors.
    data |= {"Task Results", "Tasks Database Backend", "Procrastinate", "Procrastinate jobs"}
    same = {word.lower() for word in SAME}
    assert not {
        text
        for text in left - data
        if text[:1] != "Q" and text.lower() not in same and re.search("[a-z]", text, re.IGNORECASE)
    }


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.django_db
def test_admin__speaks_the_language(language: str, chief: Client) -> None:
    path = messages.folder(language) / "django.mo"
    words = reader(path)
    operator = in_language(language, chief)
    runs = make_runs(2, "running")
    action = {"action": "cancel_selected", "_selected_action": [run.pk for run in runs]}
    page = operator.post(LIST, action)
    shown = unescape(text(page))
    assert page["Content-Language"] == language.replace("_", "-").lower()
    assert words.gettext("Cancel these runs?") in shown
    assert words.pgettext("cancelling runs", "No, take me back") in shown
    two = words.ngettext("Yes, cancel %(n)s run", "Yes, cancel %(n)s runs", 2) % {"n": 2}
    assert two in shown
    answer = operator.post(CANCEL, hidden(page), follow=True)
    done = words.ngettext("%d run has been cancelled.", "%d runs have been cancelled.", 2) % 2
    assert done in unescape(text(answer))
    assert words.gettext("cancelled, stopping") in unescape(text(answer))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.django_db
def test_contract__in_no_language(
    language: str, locale_middleware: None, secret: str, settings: Any
) -> None:
    run = make_run("completed")

    def answers(**headers: str) -> list[tuple[int, bytes]]:
        api, stranger = ApiClient(secret, headers=headers), ApiClient(headers=headers)
        return [
            (answer.status_code, answer.content)
            for answer in (
                api.get("/v1/openapi.json"),
                api.cancel([1, None]),
                api.cancel(["Q"] * 101),
                api.send("/v1/runs/cancel", "{"),
                api.send("/v1/runs/cancel", "Q", content_type="text/csv"),
                api.get("/v1/runs?status=Q&cursor=Q"),
                api.get("/v1/runs/Q"),
                api.get("/v1/runs/cancel"),
                api.get(f"/v1/runs/{run.run_id}"),
                stranger.cancel([run.run_id]),
            )
        ]

    expected = answers()
    assert [status for status, _ in expected] == [200, 422, 422, 422, 415, 422, 404, 405, 200, 403]
    code = language.replace("_", "-").lower()
    assert answers(accept_language=code) == expected
    settings.LANGUAGE_CODE = code
    assert translation.get_supported_language_variant(settings.LANGUAGE_CODE) == code
    assert answers() == expected

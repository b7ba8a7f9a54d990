"""The admin shows the translations of all messages; the API is in no language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import django
import pytest
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
from tests.translations.helpers import LANGUAGES, SAME, reader, strings
from tools import messages

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
    done = words.ngettext(
        "%(count)s run has been cancelled.", "%(count)s runs have been cancelled.", 2
    ) % {"count": 2}
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

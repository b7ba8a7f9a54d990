from __future__ import annotations

import time

import pytest

from django_run_cancel.safe_text import (
    describe_error,
    printable,
    printable_lines,
    redact,
)

SECRET = "S3cr3t-W0rd"


@pytest.mark.parametrize(
    "text",
    [
        f"redis://:{SECRET}@broker:6379/0 refused",
        f"amqp://user:{SECRET}/x@host refused",
        f"amqp://user:{SECRET}@x@host refused",
        f"connect redis://broker?password={SECRET}",
        f"DSN host=db user=x password={SECRET} failed",
        f"password='{SECRET} and more' failed",
        f"redis://us er:{SECRET}@host",
        f"redis://user:{SECRET} x@host",
        f"redis://:a@b{SECRET}@host",
        f"401 for https://api/x?api_key={SECRET}&page=2",
        f'{{"api-key": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}=",
        f"access_token={SECRET}",
        f"SECRET_KEY = '{SECRET}'",
        f"the key rc_{SECRET}-{SECRET} is wrong",
    ],
)
def test_redact(text: str) -> None:
    assert SECRET not in redact(text)
    assert "…" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "Connection to localhost:6379 refused",
        "http://localhost:8000/v1/runs answered 503",
        "no route to host",
        "the token is missing",
        "ann@example.org has no access",
    ],
)
def test_redact__leaves_the_rest(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    ["a", "-", "password", "token-", "bearer ", "://", "x://u:", "://a :", "x:// "],
)
@pytest.mark.parametrize("begin", ["", "x://", "x://:", "password"])
def test_redact__time_does_not_grow_with_the_square_of_the_length(begin: str, piece: str) -> None:
    """It takes a few hundredths of a second; what grows so takes a minute."""
    text = begin + piece * (20_000 // len(piece))
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 3


def test_describe_error() -> None:
    error = ConnectionError("redis://:pw@host \0 \ud800")
    error.add_note("password=hunter2")
    text = describe_error(error, 1_000)
    assert text == "ConnectionError: redis://…@host  \\ud800\npassword=…"
    assert describe_error(ValueError("a" * 100), 20) == "ValueError: aaaaaaaa"


def test_describe_error__a_password_that_is_cut() -> None:
    error = ValueError("x" * 30 + f" redis://:{SECRET}@host")
    assert "S3" not in describe_error(error, 55)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\r\nb\tc\0", "a\\r\\nb\\tc\\x00"),
        ("\x9b\u2028\u202e", "\\x9b\\u2028\\u202e"),
        ("héllo 🦀", "héllo 🦀"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_printable_lines() -> None:
    assert printable_lines("a\n2026 root: ok\r\x1b[1m") == "a\n    2026 root: ok\n    \\x1b[1m"

"""Text that is safe to store, to show and to log: without secrets and control characters."""

from __future__ import annotations

import re
import traceback

# Bounded where another repetition follows or the text before it may begin as well: what somebody
# else has written must not take time that grows with the square of its length.
SECRETS = (
    # The user and password of a URL, also one with slashes and spaces in it.
    (re.compile(r"(?<=://)[^/\s]*@"), "…@"),
    (re.compile(r"(?<=://)[^\s/@:]{0,200}:(?!\d{1,5}/)[^@\n]{0,200}@"), "…@"),
    (re.compile(r"(?<=://)[^\s/:@]{1,200} [^@:\n]{0,200}:[^@\n]{0,200}@"), "…@"),
    # password=…, "api_key": "…", and headers such as Authorization: Bearer ….
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), r"\1 …"),
    (
        re.compile(
            r"(?i)((?:password|passwd|pwd|secret|token|(?:api|access|private)[_-]?key)[\w-]{0,50}"
            r"[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s&,;]+)"
        ),
        r"\1…",
    ),
    # Our own API keys.
    (re.compile(r"\brc_[\w-]{20,}"), "rc_…"),
)

# C0 and C1 controls, line separators, and what reverses the direction of text.
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def redact(text: str) -> str:
    """Return a text without passwords, tokens and keys, as far as they can be recognised."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def describe_error(error: BaseException, max_length: int) -> str:
    """Return an error and its notes as redacted text that every database can store.

    Args:
        error: Any, also one that cannot be turned into text.
        max_length: Characters that are kept.
    """
    # Cut afterwards: half a password is recognised as none. But not all of a text without end.
    text = "".join(traceback.format_exception_only(error)).strip()[: 10 * max_length]
    return encodable(redact(text))[:max_length]


def encodable(text: str) -> str:
    """Return a text without what no database can store."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Return a text as one line for terminals and logs, with control characters escaped."""
    return CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, such as a traceback, that cannot pass for other log lines."""
    return "\n    ".join(printable(line) for line in text.splitlines())

"""Makes text safe to store, to display and to log: removes secrets and control characters."""

from __future__ import annotations

import re
import traceback

# Repetitions are bounded where backtracking could take quadratic time: the text is untrusted.
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

# C0 and C1 controls, line separators, and characters that change the direction of text.
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def redact(text: str) -> str:
    """Replace the passwords, tokens and keys that ``SECRETS`` recognises."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def describe_error(error: BaseException, max_length: int) -> str:
    """Return an error and its notes as redacted text that every database can store.

    Args:
        error: Any error, even if its ``__str__`` raises.
        max_length: Maximum number of characters.
    """
    # Truncate after redacting, as a truncated password is not recognised. The first limit bounds
    # the time that redacting a very long text takes.
    text = "".join(traceback.format_exception_only(error)).strip()[: 10 * max_length]
    return encodable(redact(text))[:max_length]


def encodable(text: str) -> str:
    """Remove null characters and escape surrogates, which databases cannot store."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Return a text as one line for terminals and logs, with control characters escaped."""
    return CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, such as a traceback, indented and with escaped controls.

    The indentation keeps a line of the text from being read as a log record of its own.
    """
    return "\n    ".join(printable(line) for line in text.splitlines())

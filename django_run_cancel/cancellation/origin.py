"""Where an HTTP request came from, as far as the record of a cancellation keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self

from django_run_cancel.models.ids import is_storable

MAX_REQUEST_ID_LENGTH = 128


@dataclass(frozen=True)
class Origin:
    """Where a request came from.

    Attributes:
        ip_address: Of the client; None when there is none.
        request_id: What logs know the request by; blank when it has none.

    Raises:
        ValueError: One of them cannot be stored.
    """

    ip_address: str | None = None
    request_id: str = ""

    def __post_init__(self) -> None:
        if self.ip_address is not None and _address(self.ip_address) != self.ip_address:
            raise ValueError(f"ip_address must be an IP address, not {self.ip_address!r}.")
        if not is_storable(self.request_id, MAX_REQUEST_ID_LENGTH):
            raise ValueError(
                f"request_id must be text of at most {MAX_REQUEST_ID_LENGTH} characters, "
                "without NUL."
            )

    @classmethod
    def of(cls, request: Any) -> Self:
        """Return the origin of a request of Django's or of REST framework's.

        The address is that of the connection, ``REMOTE_ADDR``: whoever asks can write anything
        into ``X-Forwarded-For``. The id is the header ``X-Request-ID``, or nothing when it is too
        long or cannot be stored.
        """
        request_id = request.headers.get("X-Request-ID", "").strip()
        if not is_storable(request_id, MAX_REQUEST_ID_LENGTH):
            request_id = ""
        return cls(_address(request.META.get("REMOTE_ADDR")), request_id)


def _address(text: str | None) -> str | None:
    try:
        # The zone of a link-local address means nothing elsewhere, and PostgreSQL refuses it.
        address = ip_address((text or "").partition("%")[0])
    except ValueError:
        return None  # a Unix socket
    # What a server that listens for both kinds sees of an IPv4 client.
    return str(getattr(address, "ipv4_mapped", None) or address)

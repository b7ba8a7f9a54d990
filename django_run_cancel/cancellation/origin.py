"""``Origin``: the client address and the id of the HTTP request that asked for a cancellation."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self

from django_run_cancel.models.ids import is_storable

MAX_REQUEST_ID_LENGTH = 128


@dataclass(frozen=True)
class Origin:
    """Client address and id of an HTTP request.

    Attributes:
        ip_address: IP address of the client, or None.
        request_id: Id of the request in logs; may be blank.

    Raises:
        ValueError: A value is invalid or cannot be stored.
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
        """Return the origin of a Django or REST framework request.

        The address is ``REMOTE_ADDR``, as clients can forge ``X-Forwarded-For``. The id is the
        header ``X-Request-ID``; blank if it is too long or cannot be stored.
        """
        request_id = request.headers.get("X-Request-ID", "").strip()
        if not is_storable(request_id, MAX_REQUEST_ID_LENGTH):
            request_id = ""
        return cls(_address(request.META.get("REMOTE_ADDR")), request_id)


def _address(text: str | None) -> str | None:
    try:
        # Drop the zone of a link-local address, which PostgreSQL refuses.
        address = ip_address((text or "").partition("%")[0])
    except ValueError:
        return None  # a Unix socket has no address
    # A dual-stack server sees IPv4 clients as IPv4-mapped IPv6 addresses.
    return str(getattr(address, "ipv4_mapped", None) or address)

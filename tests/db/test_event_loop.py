"""Where Django refuses the ORM: in the thread of an event loop."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async

from django_run_cancel.db.event_loop import orm_is_refused


def test_orm_is_refused_in_an_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_loop() -> tuple[bool, bool]:
        return orm_is_refused(), await sync_to_async(orm_is_refused)()

    assert not orm_is_refused()
    assert asyncio.run(in_loop()) == (True, False)
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    assert asyncio.run(in_loop()) == (False, False)

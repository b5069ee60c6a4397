"""The hostile destination keeps its word: the engine's tests stand on it."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from destinations.contract import DELIVERED, Env, Rejected, Retry
from destinations.hostile import Call, Hostile, HostileSettings, definition, hostile_destination, send_events
from schemas.errors import CredentialsRejected, Unavailable


def opened(
    settings: dict[str, Any], calls: list[Call] | None = None, folder: str = "."
) -> AbstractAsyncContextManager[Hostile]:
    world = Env(http=cast(Any, None), now=lambda: 100.0, folder=folder)
    return hostile_destination([] if calls is None else calls).connect(HostileSettings.model_validate(settings), world)


def event(message_id: str, profile: str = "p1", **properties: Any) -> dict[str, Any]:
    return {"messageId": message_id, "profileId": profile, "properties": properties}


async def test_without_orders_everything_is_delivered_and_noted() -> None:
    calls: list[Call] = []
    async with opened({}, calls) as hostile:
        assert await send_events(hostile, [event("a"), event("b", "p2")]) == [DELIVERED, DELIVERED]
    assert calls == [Call(("a", "b"), ("p1", "p2"), ("delivered", "delivered"))]


async def test_a_plan_goes_before_what_events_ask_for() -> None:
    plan = [{"do": "retry", "reason": "http 503", "after": 2, "times": 2}, {"do": "rejected"}, {"do": "wrong length"}]
    async with opened({"plan": plan}) as hostile:
        assert await send_events(hostile, [event("a")]) == [Retry("http 503", 2.0)]
        assert await send_events(hostile, [event("a")]) == [Retry("http 503", 2.0)]
        assert await send_events(hostile, [event("a")]) == [Rejected("hostile")]
        assert len(await send_events(hostile, [event("a")])) == 2
        assert await send_events(hostile, [event("a")]) == [DELIVERED]


async def test_an_event_asks_for_its_own_outcome() -> None:
    batch = [
        event("a", hostile="rejected"),
        event("b"),
        event("c", hostile={"do": "retry", "times": 2, "after": 0.5}),
        event("d", hostile="retry"),
    ]
    async with opened({}) as hostile:
        first = await send_events(hostile, batch)
        second = await send_events(hostile, batch[2:])
        third = await send_events(hostile, batch[2:])
    assert first == [Rejected("hostile"), DELIVERED, Retry("hostile", 0.5), Retry("hostile")]
    assert second == [Retry("hostile", 0.5), Retry("hostile")]
    assert third == [DELIVERED, Retry("hostile")]


async def test_a_profile_fails_so_many_attempts_and_then_works() -> None:
    calls: list[Call] = []
    async with opened({"profiles": {"p1": 2}, "after": 0}, calls) as hostile:
        answers = [await send_events(hostile, [event("a", "p1"), event("b", "p2")]) for _ in range(3)]
    held = Retry("hostile profile", 0.0)
    assert answers == [[held, DELIVERED], [held, DELIVERED], [DELIVERED, DELIVERED]]
    assert [call.answers for call in calls] == [("retry", "delivered")] * 2 + [("delivered", "delivered")]


async def test_it_raises_refuses_credentials_and_hangs_until_cancelled() -> None:
    calls: list[Call] = []
    async with opened({}, calls) as hostile:
        with pytest.raises(RuntimeError, match="hostile"):
            await send_events(hostile, [event("a", hostile="raise")])
        with pytest.raises(CredentialsRejected):
            await send_events(hostile, [event("a", hostile="credentials")])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_events(hostile, [event("a", hostile="hang"), event("b")]), 0.01)
    assert [call.answers for call in calls] == [("raise",), ("credentials",), ("hang", "hang")]


async def test_slow_takes_its_time_and_delivers() -> None:
    async with opened({"plan": [{"do": "slow", "seconds": 0.01}]}) as hostile:
        assert await send_events(hostile, [event("a")]) == [DELIVERED]


async def test_what_it_got_is_appended_to_a_file_for_other_processes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        async with opened({"record": "seen.ndjson"}, folder=str(tmp_path)) as hostile:
            await send_events(hostile, [event(name, hostile="rejected" if name == "b" else None)])
    assert [orjson.loads(line) for line in (tmp_path / "seen.ndjson").read_bytes().splitlines()] == [
        {"messageId": "a", "profileId": "p1", "answer": "delivered", "at": 100.0},
        {"messageId": "b", "profileId": "p1", "answer": "rejected", "at": 100.0},
    ]


@pytest.mark.parametrize(
    ("how", "error"), [("credentials", CredentialsRejected), ("unavailable", Unavailable), ("raise", RuntimeError)]
)
async def test_connecting_and_checking_fail_on_demand(how: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        async with opened({"connect": how}):
            pass
    async with opened({"check": how}) as hostile:
        with pytest.raises(error):
            await definition.check(hostile)

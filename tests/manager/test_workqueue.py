"""Keys, each with one worker at a time, and the clock that brings them back."""

import math

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.workqueue import Timers, WorkQueue

pytestmark = pytest.mark.anyio


async def test_a_key_added_twice_is_there_once() -> None:
    queue = WorkQueue()
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert [await queue.take(), await queue.take()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_added_while_it_is_worked_on_comes_again_afterwards_and_not_before() -> None:
    queue = WorkQueue()
    queue.add("a")
    assert await queue.take() == "a"
    queue.add("a")
    assert len(queue) == 0
    assert queue.busy("a")
    queue.done("a")
    assert await queue.take() == "a"
    queue.done("a")
    assert queue.idle


async def test_no_key_is_worked_on_twice_at_once_and_none_is_forgotten() -> None:
    queue = WorkQueue()
    at_work: set[str] = set()
    looked: dict[str, int] = {}

    async def work() -> None:
        while True:
            key = await queue.take()
            assert key not in at_work
            at_work.add(key)
            await anyio.lowlevel.checkpoint()
            at_work.discard(key)
            looked[key] = looked.get(key, 0) + 1
            queue.done(key)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(work)
        for n in range(500):
            queue.add(f"k{n % 17}")
            if n % 5 == 0:
                await anyio.lowlevel.checkpoint()
        while not queue.idle:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert set(looked) == {f"k{n}" for n in range(17)}


async def test_a_taker_that_gives_up_takes_nothing_with_it() -> None:
    queue = WorkQueue()
    with anyio.move_on_after(0.01):
        await queue.take()
    queue.add("a")
    with anyio.fail_after(1):
        assert await queue.take() == "a"


def test_the_earliest_time_asked_for_holds() -> None:
    timers = Timers()
    assert timers.at("a", 10.0) is True
    assert timers.at("a", 20.0) is False
    assert timers.at("a", 5.0) is True
    assert timers.at("b", math.inf) is False
    assert timers.next() == 5.0
    assert list(timers.due(5.0)) == ["a"]
    assert timers.next() == math.inf


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20))))
def test_every_key_comes_due_once_at_its_earliest_time(asked: list[tuple[str, int]]) -> None:
    timers = Timers()
    for key, when in asked:
        timers.at(key, when)
    seen: dict[str, int] = {}
    for now in range(21):
        for key in timers.due(now):
            assert key not in seen
            seen[key] = now
    assert seen == {key: min(w for k, w in asked if k == key) for key, _ in asked}

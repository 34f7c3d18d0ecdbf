"""The pulse of an API server: who talks is not asked, who answers lives, and who does neither is given up."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from proplet.manager.kubernetes_pulse import Pulse
from proplet.manager.ports import RefusedError, StoreUnavailableError

pytestmark = pytest.mark.anyio

LONG_AGO_S = 1000.0


class Server:
    """What a pulse hears of a server, and how that answers; `told` is called whenever anything happens."""

    def __init__(self) -> None:
        self.heard_at = time.monotonic() - LONG_AGO_S
        self.talking = False
        self.answers: Callable[[], None] | None = None
        self.looked = self.asked = self.given_up = 0
        self._news = anyio.Event()

    def heard(self) -> float:
        self.looked += 1
        if self.talking:
            self.heard_at = time.monotonic()
        self._tell()
        return self.heard_at

    async def ask(self) -> None:
        self.asked += 1
        self._tell()
        if self.answers is None:
            await anyio.sleep_forever()
        else:
            self.answers()

    def give_up(self) -> None:
        self.given_up += 1
        self._tell()

    def answer(self) -> None:
        self.heard_at = time.monotonic()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not reached():
                await self._news.wait()


@asynccontextmanager
async def felt(server: Server, timeout_s: float = 0.1) -> AsyncIterator[Pulse]:
    pulse = Pulse(server.heard, server.ask, server.give_up, timeout_s)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pulse.run)
        yield pulse
        tasks.cancel_scope.cancel()


async def test_a_server_that_talks_is_not_asked() -> None:
    server = Server()
    server.talking = True
    async with felt(server, timeout_s=2.0) as pulse:
        await server.until(lambda: server.looked >= 3)
        assert pulse.problem is None
    assert (server.asked, server.given_up) == (0, 0)


async def test_a_silent_server_that_answers_lives() -> None:
    server = Server()
    server.answers = server.answer
    async with felt(server, timeout_s=0.2) as pulse:
        await server.until(lambda: server.asked >= 3)
        assert pulse.problem is None
    assert server.given_up == 0


async def test_a_refusal_is_an_answer() -> None:
    server = Server()

    def refuse() -> None:
        server.answer()
        raise RefusedError("not for you")

    server.answers = refuse
    async with felt(server, timeout_s=0.2) as pulse:
        await server.until(lambda: server.asked >= 3)
        assert pulse.problem is None
    assert server.given_up == 0


async def test_a_server_that_leaves_a_question_unanswered_is_silent_until_it_is_heard_again() -> None:
    server = Server()
    async with felt(server) as pulse:
        await server.until(lambda: server.given_up >= 3)  # and asked again and again
        assert "nothing was heard of the API server for 0.1 s" in str(pulse.problem)
        server.talking = True
        server.heard()
        assert pulse.problem is None


async def test_a_server_that_cannot_be_reached_is_silent_and_not_asked_in_a_loop() -> None:
    server = Server()

    def unreachable() -> None:
        raise StoreUnavailableError("no route to host")

    server.answers = unreachable
    async with felt(server) as pulse:
        await server.until(lambda: server.given_up >= 3)
        assert pulse.problem is not None
        assert server.asked - server.given_up <= 1


async def test_who_has_only_not_listened_does_not_take_the_server_for_silent() -> None:
    """A process that was frozen, for example."""
    server = Server()
    pulse = Pulse(server.heard, server.ask, server.give_up, 0.1)
    assert pulse.problem is None
    async with felt(server, timeout_s=20.0) as asking:
        await server.until(lambda: server.asked == 1)
        assert asking.problem is None

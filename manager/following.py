"""Following what changes in a store, for ever: watch, list again where changes were missed, wait where it is away.

The loops over Tasks, Proplets and works share it, so that a store that is away for a while ends none of them, whether
it was being watched or listed just then.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NoReturn, cast

import anyio

from proplet.manager.model import Kind
from proplet.manager.ports import Change, GoneError, Store, StoreUnavailableError

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0


async def follow(
    store: Store,
    kind: Kind,
    since: Callable[[], int],
    take: Callable[[Change], object],
    relist: Callable[[], Awaitable[object]],
    *,
    retry_s: float = RETRY_S,
) -> NoReturn:
    """Tell every change of a kind, until cancelled.

    Args:
        store: what is followed.
        kind: of what.
        since: the version up to which everything is known; asked whenever the watch begins anew.
        take: what is told each change.
        relist: takes over everything there is, and moves `since`; called where changes were missed, until it works.
        retry_s: seconds until a store that is away is asked again.
    """
    behind = False
    while True:
        try:
            if behind:
                await relist()
                behind = False
            async with aclosing(cast("Any", store.watch(kind, since()))) as changes:
                async for change in changes:
                    take(change)
        except GoneError:
            if behind:  # even the listing says so: no reason to ask without a pause
                await anyio.sleep(retry_s)
            behind = True
        except StoreUnavailableError as error:
            log.warning("%ss cannot be %s, trying again: %s", kind.value, "listed" if behind else "watched", error)
            await anyio.sleep(retry_s)

"""Who depends on whom, and which pending Tasks wait for each other in a circle. Pure, and kept up to date by the Book.

A circle comes into being with the last of its Tasks: one that is new, depends on something else now, or is pending
again. So only then is it searched for, from that Task, and those that close one are remembered: where nobody does,
there is none, and nothing is looked at. A search goes both ways at once, a dependency at a time, and ends where either
way does. So it costs about as much as the shorter one: a chain of thousands that is made from one of its ends to the
other costs a look or two for each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from proplet.manager.model import Key, Task
from proplet.manager.phases import Phase
from proplet.manager.workflow import Find

Get = Callable[[str], Task | None]
_MOST: Final = 10_000  # Tasks looked at in search of a circle, each way


class Circles:
    """The index of dependencies. `find` returns the Task of a key, `get` that of a uid, as they are known now."""

    def __init__(self, find: Find, get: Get) -> None:
        self._find = find
        self._get = get
        self._dependents: dict[Key, set[str]] = {}
        self._closers: dict[str, set[str]] = {}  # by namespace

    def change(self, before: Task | None, after: Task | None) -> None:
        """A Task is known as `after` now, None if it is gone; `find` and `get` say so already."""
        moved = before is None or after is None or before.spec.depends_on != after.spec.depends_on
        if moved:
            self._index(before, after)
        if after is None or not _is_pending(after):
            self._opened(before or after)
        elif moved or (before is not None and not _is_pending(before)):
            self._opened(after)
            if self._search(after):
                self._closers.setdefault(after.meta.namespace, set()).add(after.id)

    def dependents(self, key: Key) -> Iterator[Task]:
        """Yield the pending Tasks that depend on this one."""
        for uid in self._dependents.get(key, ()):
            task = self._get(uid)
            if task is not None and _is_pending(task):
                yield task

    def of(self, task: Task) -> Sequence[str]:
        """Return the names along a way from a pending Task over pending dependencies back to it; empty: there is none.

        What `workflow.circle_of` returns, or another one of its circles, without a search where none is known of.
        """
        if not self._closers.get(task.meta.namespace):
            return ()
        found = self._search(task)
        if not found:
            self._opened(task)  # another of its Tasks has changed
        return found

    def _opened(self, task: Task | None) -> None:
        closers = self._closers.get(task.meta.namespace) if task is not None else None
        if task is not None and closers is not None:
            closers.discard(task.id)
            if not closers:
                del self._closers[task.meta.namespace]

    def _index(self, before: Task | None, after: Task | None) -> None:
        for key in _needs(before):
            uids = self._dependents[key]
            uids.discard(before.id if before is not None else "")
            if not uids:
                del self._dependents[key]
        for key in _needs(after):
            self._dependents.setdefault(key, set()).add(after.id if after is not None else "")

    # --- the search ---------------------------------------------------------------------------------------------------

    def _search(self, task: Task) -> Sequence[str]:
        start = task.meta.key
        ahead, behind = dict[Key, Key](), dict[Key, Key]()
        ways = (
            (_walk(start, lambda key: self._ahead(task, key), ahead), behind),
            (_walk(start, lambda key: self._behind(task, key), behind), ahead),
        )
        while True:
            for way, other in ways:
                key = next(way, None)
                if key is None:
                    return ()
                if key == start or key in other:
                    return _names(start, key, ahead, behind)

    def _ahead(self, task: Task, key: Key) -> Iterator[Key]:
        start = task.meta.key
        current = task if key == start else self._find(key)
        for name in current.spec.depends_on if current is not None else ():
            following = Key(name, start.namespace)
            if following == start or _is_pending(self._find(following)):
                yield following

    def _behind(self, task: Task, key: Key) -> Iterator[Key]:
        for other in self.dependents(key):
            if other.id == task.id or self._find(other.meta.key) is other:  # else another one has its name now
                yield other.meta.key


def _walk(start: Key, following: Callable[[Key], Iterable[Key]], via: dict[Key, Key]) -> Iterator[Key]:
    """Yield one key after the other that can be reached, some more than once; `via` says from where each was."""
    stack = [start]
    for _ in range(_MOST):
        if not stack:
            return
        current = stack.pop()
        for key in following(current):
            if key not in via:
                via[key] = current
                if key != start:
                    stack.append(key)
            yield key


def _names(start: Key, meeting: Key, ahead: dict[Key, Key], behind: dict[Key, Key]) -> Sequence[str]:
    """The circle of which one part leads from `start` to `meeting`, the other from there back."""
    first = _trace(start, meeting, ahead) if meeting in ahead else []
    second = _trace(start, meeting, behind) if meeting in behind else []
    if meeting == start:
        return (start.name, *reversed(first)) if first else (*second, start.name)
    return (start.name, *reversed(first), *second[1:], start.name)


def _trace(start: Key, key: Key, via: dict[Key, Key]) -> list[str]:
    """The names from `key` on to the last before `start`."""
    names = [key.name]
    while (key := via[key]) != start:
        names.append(key.name)
    return names


def _is_pending(task: Task | None) -> bool:
    return task is not None and task.status.phase is Phase.PENDING


def _needs(task: Task | None) -> set[Key]:
    return set() if task is None else {Key(name, task.meta.namespace) for name in task.spec.depends_on}

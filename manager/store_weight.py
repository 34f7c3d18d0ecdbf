"""What resources weigh in memory: the parts that can be large, results and modules, each counted once."""

from collections import Counter
from collections.abc import Iterator

from proplet.manager.model import PropellerJob, Resource, Task


class Scale:
    """A sum over resources. Versions of a Task share their parts, and so do Tasks with the same module."""

    def __init__(self) -> None:
        self.weight = 0  # bytes of module, characters of text
        self._held: Counter[int] = Counter()

    def put(self, resource: Resource) -> None:
        """Count a resource; it must stay alive until it is taken off, parts are told apart by where they are."""
        for part in _parts(resource):
            self._held[id(part)] += 1
            if self._held[id(part)] == 1:
                self.weight += len(part)

    def take(self, resource: Resource) -> None:
        """Take a resource off."""
        for part in _parts(resource):
            self._held[id(part)] -= 1
            if not self._held[id(part)]:
                del self._held[id(part)]
                self.weight -= len(part)


def _parts(resource: Resource) -> Iterator[str | bytes]:
    if isinstance(resource, PropellerJob):
        yield from (spec.file for spec in resource.spec.tasks if spec.file)
    if not isinstance(resource, Task):
        return
    status = resource.status
    entries = (entry.get(name) for entry in status.broadcast_results for name in ("results", "error"))
    for part in (resource.spec.file, status.results, status.error, *entries):
        if part:
            yield part

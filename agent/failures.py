"""What keeps a node from running, in words for a person, out of whatever library or task group it came."""

from collections.abc import Iterator
from contextlib import contextmanager


class NodeError(Exception):
    """The node cannot run as configured, or a part of it has failed for good; the message says what to do."""


@contextmanager
def as_node_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds, also out of a task group, end the node with their own words and nothing else."""
    try:
        yield
    except kinds as error:
        raise NodeError(str(error)) from error
    except BaseExceptionGroup as group:
        errors = list(leaves(group))
        if not all(isinstance(error, kinds) for error in errors):
            raise
        raise NodeError("; ".join(str(error) for error in errors)) from group


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the errors themselves, out of the groups of the task groups they passed."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error

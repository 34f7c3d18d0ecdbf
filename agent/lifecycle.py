"""A task's life on the device, as one literal table; nothing else decides what may follow what.

Place in the flow: `core` asks `advance` for the next state. Never does: I/O, clocks, decisions about policy.
"""

from enum import Enum
from types import MappingProxyType
from typing import Final


class State(Enum):
    """Where an attempt stands; the values are the journal's and the inventory's words."""

    ACCEPTED = "accepted"  # journalled, waiting for a slot
    PREPARING = "preparing"  # its module is fetched, verified, compiled
    RUNNING = "running"  # journalled as running; the guest runs, or is just being handed to the worker
    SERVING = "serving"  # it runs, and accepts connections at a port
    STOPPING = "stopping"  # a stop was asked for; the guest has not ended yet
    WAITING = "waiting"  # it failed and runs again after its backoff
    DEPLOYED = "deployed"  # latent: its module is ready, and it runs only when it is invoked
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Event(Enum):
    """What can happen to an attempt."""

    PREPARE = "prepare"
    PREPARED = "prepared"
    DEPLOY = "deploy"
    SERVE = "serve"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRY = "retry"
    STOP = "stop"
    ENDED = "ended"
    RESTARTED_NODE = "restarted_node"


TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.INTERRUPTED})

TRANSITIONS: Final = MappingProxyType(
    {
        State.ACCEPTED: {
            Event.PREPARE: State.PREPARING,
            Event.FAILED: State.FAILED,
            Event.STOP: State.INTERRUPTED,
            Event.RESTARTED_NODE: State.ACCEPTED,
        },
        State.PREPARING: {
            Event.PREPARED: State.RUNNING,
            Event.DEPLOY: State.DEPLOYED,
            Event.FAILED: State.FAILED,
            Event.RETRY: State.WAITING,
            Event.STOP: State.STOPPING,
            Event.RESTARTED_NODE: State.ACCEPTED,
        },
        State.RUNNING: {
            Event.SERVE: State.SERVING,
            Event.SUCCEEDED: State.COMPLETED,
            Event.FAILED: State.FAILED,
            Event.RETRY: State.WAITING,
            Event.STOP: State.STOPPING,
            Event.RESTARTED_NODE: State.INTERRUPTED,
        },
        State.SERVING: {
            Event.SERVE: State.SERVING,
            Event.SUCCEEDED: State.COMPLETED,
            Event.FAILED: State.FAILED,
            Event.RETRY: State.WAITING,
            Event.STOP: State.STOPPING,
            Event.RESTARTED_NODE: State.INTERRUPTED,
        },
        State.STOPPING: {
            Event.SUCCEEDED: State.COMPLETED,
            Event.ENDED: State.INTERRUPTED,
            Event.RESTARTED_NODE: State.INTERRUPTED,
        },
        State.WAITING: {
            Event.PREPARE: State.PREPARING,
            Event.STOP: State.INTERRUPTED,
            Event.RESTARTED_NODE: State.ACCEPTED,
        },
        State.DEPLOYED: {
            Event.STOP: State.INTERRUPTED,
            Event.RESTARTED_NODE: State.ACCEPTED,
        },
        State.COMPLETED: {},
        State.FAILED: {},
        State.INTERRUPTED: {},
    }
)


class IllegalTransitionError(RuntimeError):
    """The table has no such edge: a defect of ours, never of a peer's message."""


def advance(state: State, event: Event) -> State:
    """Return the state after `event`.

    Raises:
        IllegalTransitionError: the table has no such edge.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransitionError(f"{event.value} cannot happen to a task that is {state.value}") from None

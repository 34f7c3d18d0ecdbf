"""The agent's decisions, pure: an event in, what to save and what to do then out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the journal held."""


@dataclass(frozen=True, slots=True)
class Save:
    """One durable change."""

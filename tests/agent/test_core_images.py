"""A tag is looked up once for a task: what its image was then runs again, also after the node was restarted."""

import json

from proplet.agent.admission import CoreSettings
from proplet.agent.core import Core
from proplet.agent.events import (
    ModuleReady,
    Prepare,
    Recovered,
    RecoveredAttempt,
    RunEnded,
    RunKey,
    SaveOutcome,
    SaveState,
    StartReceived,
    Step,
    Tick,
)
from proplet.agent.lifecycle import State
from proplet.agent.ports import GuestLimits, Outcome
from proplet.agent.terms import NodeLimits, wanted_by
from proplet.agent.wire import PullPolicy, Reason, RestartPolicy, Start, StartTerms

KEY = RunKey("t", 1)
TERMS = StartTerms(attempt=1, restart_policy=RestartPolicy.ALWAYS, pull_policy=PullPolicy.ALWAYS, backoff_limit=1)
START = Start("t", "main", image_url="ghcr.io/org/app:v1", ext=TERMS)
NODE = NodeLimits(GuestLimits(), GuestLimits())
WAS = f"sha256:{'a' * 64}"
TRAP = Outcome(Reason.TRAP, error="x")


def prepared(step: Step) -> Prepare:
    (found,) = (effect for effect in step.then if isinstance(effect, Prepare))
    return found


def test_a_task_that_is_restarted_runs_the_image_that_it_ran() -> None:
    agent = Core(CoreSettings("me"))
    first = prepared(agent.handle(StartReceived(START, None, "h", False), 0.0))
    wanted = wanted_by(first, PullPolicy.IF_NOT_PRESENT, NODE)
    assert (wanted.image_digest, wanted.pull_policy) == (None, PullPolicy.ALWAYS)
    step = agent.handle(ModuleReady(KEY, WAS), 1.0)
    assert step.save == (SaveState(KEY, State.RUNNING, 1.0, image_digest=WAS),)
    agent.handle(RunEnded(KEY, TRAP), 2.0)
    again = prepared(agent.handle(Tick(), 400.0))
    wanted = wanted_by(again, PullPolicy.IF_NOT_PRESENT, NODE)
    assert (wanted.image_url, wanted.image_digest) == (START.image_url, WAS)
    assert wanted.pull_policy is PullPolicy.IF_NOT_PRESENT
    agent.handle(ModuleReady(KEY, WAS), 401.0)
    ended = agent.handle(RunEnded(KEY, TRAP), 402.0)
    (saved,) = (save for save in ended.save if isinstance(save, SaveOutcome))
    assert WAS in json.dumps(json.loads(saved.payload))


def test_so_does_one_that_is_restarted_with_its_node() -> None:
    row = RecoveredAttempt(KEY, START, None, "h", State.RUNNING, 0.0, image_digest=WAS)
    step = Core(CoreSettings("me")).recover(Recovered((row,)), 100.0)
    assert wanted_by(prepared(step), PullPolicy.IF_NOT_PRESENT, NODE).image_digest == WAS

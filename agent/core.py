"""The agent's decisions, pure: an event and the time in, what to save and what to do then out.

Place in the flow: the shell feeds every event through `Core.handle`, makes `Step.save` durable, then does `Step.then`,
whose outcomes come back as events. Never does: I/O, clocks, logging. Recovery is the same: `Core.recover`.

What it guarantees, if the shell keeps that order:

* an accepted start ends in exactly one saved outcome, whatever happens in between;
* the attempt of a known start is not run twice: it is answered with its result, or with the inventory while it runs;
* at most one attempt of a task is live; a newer one waits until the older has been stopped.
"""

from dataclasses import replace

from proplet.agent import codec, restarts, stages, wire
from proplet.agent.admission import CoreSettings, crowded, unsupported
from proplet.agent.attempts import Attempt, Attempts
from proplet.agent.events import (
    Cancel,
    CommandRefused,
    Deliver,
    Deploy,
    Effect,
    Event,
    Invoked,
    ModuleFailed,
    ModuleReady,
    Note,
    Outcome,
    Prepare,
    Recovered,
    RecoveredAttempt,
    Retire,
    Run,
    RunEnded,
    RunKey,
    Save,
    SaveAccepted,
    SaveOutcome,
    SaveReply,
    SaveResend,
    SaveState,
    Served,
    Spent,
    StartReceived,
    Step,
    StopReceived,
    TellInventory,
    Tick,
    Waits,
)
from proplet.agent.lifecycle import TERMINAL, State, advance
from proplet.agent.lifecycle import Event as Life
from proplet.agent.restarts import (
    BACKOFF_MAX_S,
    back_off,
    given_up,
    held,
    repeats_interrupted,
    runs_again,
    started_at,
    word,
)
from proplet.agent.results import ENDINGS, result_of
from proplet.agent.topics import Route
from proplet.agent.wire import Reason


class Core:
    """All attempts this device holds, and the rules for them."""

    def __init__(self, settings: CoreSettings) -> None:
        self._settings = settings
        self._attempts = Attempts(settings.known_attempts)
        self._active = {False: 0, True: 0}  # daemons apart

    # --- what others may ask --------------------------------------------------------------------------------------

    def inventory(self) -> tuple[wire.InventoryItem, ...]:
        """Return every attempt that has not finished."""
        return tuple(held(a) for a in self._attempts)

    def next_due(self) -> float | None:
        """Return when the next backoff ends that can be followed by a run, or None."""
        return self._attempts.next_due([daemons for daemons in (False, True) if self._room(daemons)])

    def invocable(self, task_id: str) -> RunKey | str:
        """Return the run of a latent task that is, or is just being, made ready; or why it cannot be invoked."""
        runs = self._attempts.of_task(task_id)
        if not runs:
            # The reference's manager looks for these words and then deploys the task again.
            return f"task {task_id} has not been precompiled; deploy it as a latent task first"
        newest = runs[-1]
        if not newest.start.latent:
            kind = "a daemon, which runs by itself" if newest.start.daemon else "run once, not latent"
            return f"task {task_id} is {kind}: only tasks with `latent: true` can be invoked"
        if newest.state is State.WAITING:
            return f"task {task_id} is not ready to be invoked: {newest.trouble}"
        return newest.key

    def __len__(self) -> int:
        return len(self._attempts)

    # --- events ---------------------------------------------------------------------------------------------------

    def recover(self, held: Recovered, now: float) -> Step:
        """Take over what the journal held; the outcomes it lacks are decided here."""
        for key, payload_hash in held.finished.items():
            self._attempts.end(key, payload_hash)
        save: list[Save] = []
        then: list[Effect] = []
        for row in held.unfinished:
            step = self._recover_attempt(row, now)
            save += step.save
            then += step.then
        return self._admit(Step(tuple(save), tuple(then)), now)

    def handle(self, event: Event, now: float) -> Step:
        """Return what `event` leads to at time `now`."""
        match event:
            case StartReceived():
                step = self._on_start(event, now)
            case CommandRefused():
                step = self._on_refused(event, now)
            case StopReceived():
                step = self._on_stop(event, now)
            case ModuleReady():
                step = self._on_ready(event, now)
            case ModuleFailed():
                step = self._on_unready(event, now)
            case Served():
                step = self._on_served(event, now)
            case Invoked(key, spent):
                step = self._on_invoked(key, spent)
            case RunEnded():
                step = self._on_ended(event, now)
            case Tick():
                # A clock that was set back must not keep a backoff waiting for years.
                self._attempts.due_by(now + BACKOFF_MAX_S)
                step = Step()
        return self._admit(step, now)

    # --- starts and stops -----------------------------------------------------------------------------------------

    def _on_start(self, event: StartReceived, now: float) -> Step:
        start = event.start
        if not start.broadcast and start.proplet_id and start.proplet_id != self._settings.proplet_id:
            return Step()
        known = self._answer_known(event)
        if known is not None:
            return known
        number = start.attempt
        key = RunKey(start.id, self._attempts.newest_run(start.id) + 1 if number is None else number)
        attempt = Attempt(key, start, event.module_digest, event.payload_hash, received_at=now, since=now)
        refused = unsupported(start, self._settings)
        if refused:
            return self._finish(attempt, Outcome(Reason.NOT_SUPPORTED, error=refused), now)
        if key.run < self._attempts.newest_run(start.id):
            text = f"attempt {key.run} came after attempt {self._attempts.newest_run(start.id)} and is not run"
            return self._finish(attempt, Outcome(Reason.SUPERSEDED, error=text), now)
        if (full := crowded(start, self._settings, self._attempts)) is not None:
            return self._reply(start.id, number, Reason.OVERLOADED, full, now)
        older = [self._stop(a, Reason.SUPERSEDED, now) for a in self._attempts.of_task(start.id)]
        self._attempts.hold(attempt)
        self._attempts.wait(attempt)
        accepted = SaveAccepted(key, start, event.module_digest, event.payload_hash, now)
        return Step(
            (*(s for step in older for s in step.save), accepted), tuple(e for step in older for e in step.then)
        )

    def _answer_known(self, event: StartReceived) -> Step | None:
        """A start that was seen before is answered, not run."""
        start, number = event.start, event.start.attempt
        if number is None:
            if self._attempts.of_task(start.id):
                return Step(then=(Note("a second start of a running task is ignored", start.id),))
            last = self._attempts.last_ended(start.id)
            if event.duplicate and last is not None and last[1] == event.payload_hash:
                return Step((SaveResend(last[0]),), (Deliver(),))
            return None
        key = RunKey(start.id, number)
        if key in self._attempts:
            return Step(then=(TellInventory(),))
        if self._attempts.has_ended(key):
            return Step((SaveResend(key),), (Deliver(),))
        return None

    def _on_refused(self, event: CommandRefused, now: float) -> Step:
        key = RunKey(event.task_id, event.attempt if event.attempt is not None else -1)
        if key in self._attempts:
            return Step(then=(TellInventory(),))
        if self._attempts.has_ended(key):
            return Step((SaveResend(key),), (Deliver(),))
        if event.attempt is None and self._attempts.of_task(event.task_id):
            # A failed result would end, for the sender, the run that goes on.
            return Step(then=(Note(f"a command was refused: {event.detail}", event.task_id, warning=True),))
        step = self._reply(event.task_id, event.attempt, event.reason, event.detail, now)
        note = Note(f"a command was refused: {event.detail}", event.task_id, warning=True)
        return replace(step, then=(*step.then, note))

    def _on_stop(self, event: StopReceived, now: float) -> Step:
        save: list[Save] = []
        then: list[Effect] = []
        runs = self._attempts.of_task(event.task_id)
        for attempt in runs:
            number = attempt.number
            if event.attempt is None or number is None or number == event.attempt:
                step = self._stop(attempt, Reason.STOPPED, now)
                save += step.save
                then += step.then
        if not runs:
            known = RunKey(event.task_id, event.attempt if event.attempt is not None else -1)
            if self._attempts.has_ended(known):  # the stop crossed the result: say again what became of it
                return Step((SaveResend(known),), (Deliver(),))
            then.append(Note("a stop for a task that is not here is ignored", event.task_id))
        return Step(tuple(save), tuple(then))

    def _stop(self, attempt: Attempt, why: Reason, now: float) -> Step:
        if attempt.state is State.STOPPING:
            return Step()
        attempt.ending = why
        if attempt.state in (State.ACCEPTED, State.WAITING, State.DEPLOYED):
            return self._finish(attempt, Outcome(why, error=ENDINGS[why].format(attempt.key.task_id)), now, Life.STOP)
        attempt.state = advance(attempt.state, Life.STOP)
        return Step((SaveState(attempt.key, attempt.state, now, attempt.restarts),), (Cancel(attempt.key),))

    # --- preparations and runs --------------------------------------------------------------------------------------

    def _on_ready(self, event: ModuleReady, now: float) -> Step:
        attempt = self._attempts.get(event.key)
        if attempt is None:
            return Step()
        if attempt.state is State.STOPPING:  # the module was ready before the stop could cancel it
            return self._settle(attempt, Outcome(Reason.STOPPED), now)
        attempt.state = advance(attempt.state, Life.DEPLOY if attempt.start.latent else Life.PREPARED)
        attempt.prepared = True
        attempt.image_digest = event.image_digest or attempt.image_digest
        attempt.start_kind = event.start_kind
        stages.became_ready(attempt, event, now)
        image = attempt.image_digest
        saved = (SaveState(attempt.key, attempt.state, now, attempt.restarts, image_digest=image),)
        if attempt.state is State.DEPLOYED:
            self._active[attempt.stays] -= 1
            attempt.failures = 0
            return Step(saved, (Deploy(attempt.key, attempt.start, attempt.module_digest),))
        return Step(saved, (Run(attempt.key, attempt.start, attempt.restarts),))

    def _on_unready(self, event: ModuleFailed, now: float) -> Step:
        attempt = self._attempts.get(event.key)
        if attempt is None:
            return Step()
        return self._settle(attempt, Outcome(event.reason, error=event.message), now)

    def _on_served(self, event: Served, now: float) -> Step:
        """A service keeps no task's slot. Peers of ours see it run; the reference's take it for the result."""
        attempt = self._attempts.get(event.key)
        if attempt is None or attempt.state is State.STOPPING:
            return Step()
        again, stayed = attempt.served, attempt.stays
        attempt.served, attempt.port = True, event.port
        stages.began_to_serve(attempt, now)
        self._active[stayed] -= 1
        self._active[attempt.stays] += 1
        attempt.state = advance(attempt.state, Life.SERVE)
        saved = SaveState(attempt.key, attempt.state, now, attempt.restarts)
        if attempt.start.ext is not None or again:
            return Step((saved,))
        message = wire.Result(attempt.key.task_id, self._settings.proplet_id, started_at(event.port))
        return Step((saved, SaveReply(Route.RESULTS.value, codec.encode(message), now)), (Deliver(),))

    def _on_invoked(self, key: RunKey, spent: Spent) -> Step:
        if (attempt := self._attempts.get(key)) is not None:
            attempt.spent = spent
        return Step()

    def _on_ended(self, event: RunEnded, now: float) -> Step:
        attempt = self._attempts.get(event.key)
        if attempt is None:
            return Step()
        stages.ran(attempt, event.outcome, now)
        return self._settle(attempt, event.outcome, now)

    def _settle(self, attempt: Attempt, outcome: Outcome, now: float) -> Step:
        """An active attempt has come to rest: it is stopped, tried again, or finished."""
        self._active[attempt.stays] -= 1
        if attempt.state is State.STOPPING:
            if outcome.reason is Reason.OK:  # it was quicker than the stop
                return self._finish(attempt, outcome, now, Life.SUCCEEDED)
            if outcome.reason is Reason.STOPPED:
                text = ENDINGS[attempt.ending].format(attempt.key.task_id)
                outcome = replace(outcome, reason=attempt.ending, error=text, results="")
            return self._finish(attempt, outcome, now, Life.ENDED)
        if runs_again(attempt, outcome):
            return self._wait_to_repeat(attempt, outcome, now)
        event = Life.SUCCEEDED if outcome.reason is Reason.OK else Life.FAILED
        return self._finish(attempt, given_up(attempt, outcome), now, event)

    def _wait_to_repeat(self, attempt: Attempt, outcome: Outcome, now: float) -> Step:
        back_off(attempt, outcome, now)
        attempt.spent = attempt.spent.plus(outcome)
        attempt.state = advance(attempt.state, Life.RETRY)
        self._attempts.wait(attempt)
        then: tuple[Effect, ...] = (
            Note(attempt.trouble, attempt.key.task_id, warning=True),
            Waits(attempt.key, attempt.start, word(attempt), attempt.trouble),
        )
        if attempt.start.latent:
            why = f"task {attempt.key.task_id} is not ready to be invoked: {attempt.trouble}"
            then = (*then, Retire(attempt.key, why))
        return Step((SaveState(attempt.key, attempt.state, now, attempt.restarts, attempt.not_before),), then)

    def _finish(self, attempt: Attempt, outcome: Outcome, now: float, event: Life | None = None) -> Step:
        """The attempt's outcome, in the journal and the outbox at once. Without an event it never lived here."""
        state = State.FAILED if event is None else advance(attempt.state, event)
        assert state in TERMINAL
        # A latent task has no run of its own.
        spent = attempt.spent if attempt.start.latent else attempt.spent.plus(outcome)
        stages.ended(attempt, spent, now)
        message = result_of(
            attempt.start,
            outcome,
            spent,
            proplet_id=self._settings.proplet_id,
            stages=attempt.stages,
            image_digest=attempt.image_digest,
            restarts=attempt.restarts,
            start_kind=attempt.start_kind,
        )
        self._attempts.end(attempt.key, attempt.payload_hash)
        saved = SaveOutcome(attempt.key, state, now, attempt.payload_hash, Route.RESULTS.value, codec.encode(message))
        if attempt.start.latent and message.error is not None:
            return Step((saved,), (Deliver(), Retire(attempt.key, message.error)))
        return Step((saved,), (Deliver(),))

    # --- recovery ---------------------------------------------------------------------------------------------------

    def _recover_attempt(self, row: RecoveredAttempt, now: float) -> Step:
        attempt = Attempt.recovered(row, now)
        self._attempts.hold(attempt)
        if attempt.state is State.STOPPING:
            text = ENDINGS[Reason.STOPPED].format(attempt.key.task_id)
            return self._finish(attempt, Outcome(Reason.STOPPED, error=text), now, Life.RESTARTED_NODE)
        if attempt.state not in (State.RUNNING, State.SERVING):
            if attempt.state is State.WAITING:
                restarts.go_on_waiting(attempt, now)
            else:
                attempt.state = State.ACCEPTED
            self._attempts.wait(attempt)
            return Step()
        if repeats_interrupted(attempt):
            attempt.state = advance(attempt.state, Life.RETRY)
            attempt.restarts += 1
            attempt.not_before = now
            self._attempts.wait(attempt)
            note = Note("runs again: the node was restarted while it ran", attempt.key.task_id)
            return Step((SaveState(attempt.key, attempt.state, now, attempt.restarts, now),), (note,))
        text = ENDINGS[Reason.INTERRUPTED].format(attempt.key.task_id)
        return self._finish(attempt, Outcome(Reason.INTERRUPTED, error=text), now, Life.RESTARTED_NODE)

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _room(self, daemons: bool) -> int:
        most = self._settings.max_daemons if daemons else self._settings.max_active
        return max(0, most - self._active[daemons])

    def _admit(self, step: Step, now: float) -> Step:
        """Give free slots to whatever waited longest and may run now."""
        if not self._attempts.waiting:
            return step
        then: list[Effect] = []
        chosen = [
            a for daemons in (False, True) for a in self._attempts.take(self._room(daemons), now, daemons=daemons)
        ]
        for attempt in chosen:
            stages.took_a_slot(attempt, now)
            attempt.state = advance(attempt.state, Life.PREPARE)
            self._active[attempt.stays] += 1
            image = attempt.image_digest
            then.append(Prepare(attempt.key, attempt.start, attempt.module_digest, attempt.prepared, image))
        return replace(step, then=(*step.then, *then)) if then else step

    def _reply(self, task_id: str, attempt: int | None, reason: Reason, text: str, now: float) -> Step:
        message = wire.Result(
            task_id, self._settings.proplet_id, error=text, ext=wire.ResultTerms(attempt=attempt, reason=reason)
        )
        return Step((SaveReply(Route.RESULTS.value, codec.encode(message), now),), (Deliver(),))

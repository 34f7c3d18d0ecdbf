"""The rules of the custom resource definitions, in CEL: those of `rules` that bounds cannot say, with their messages.

They take the place of admission webhooks. Each is an expression over `self`, the value at its path (`crd_schema`
explains paths); `field` is what the message is about, seen from there. The corpus in tests/manifests holds them to
`rules`.
"""

from collections.abc import Mapping
from typing import Final

from proplet.manager.crd_bounds import DURATION
from proplet.manager.crd_cel import OF_STATUS, CelRule, given, rule_of
from proplet.manager.crd_rules_task import AFTER_DISPATCH, TASK_FIELD_RULES, TASK_GROUP_RULE, TASK_SPEC_RULES
from proplet.manager.model import WORKS, Kind

# --- Proplets ---------------------------------------------------------------------------------------------------------


def _proplet(name: str, expression: str) -> CelRule:
    return rule_of(Kind.PROPLET, name, expression)


def _connection(name: str, expression: str) -> CelRule:
    return rule_of(Kind.PROPLET, name, expression, at="spec.connectionConfig")


_KEYS: Final = ("clientKey", "apiKey", "clientKeySecretRef", "apiKeySecretRef")
_PROPLET_RULES: Final = (
    _proplet("type k8s has its block", "self.type != 'k8s' || (has(self.k8s) && has(self.k8s.image))"),
    _proplet("type external has no k8s block", "self.type != 'external' || !has(self.k8s)"),
    _proplet("type k8s has no external block", "self.type != 'k8s' || !has(self.external)"),
)
_CONNECTION_RULES: Final = (
    _connection("connection names its domain", f"{given('domainId')} || {given('tenantId')}"),
    _connection("connection names its channel", given("channelId")),
    _connection("connection names its client", f"{given('clientId')} || {given('entityId')}"),
    _connection("one name of the domain", "!has(self.domainId) || !has(self.tenantId)"),
    _connection("one name of the client", "!has(self.clientId) || !has(self.entityId)"),
    _connection(
        "one source of the key",
        "["
        + ", ".join(f"has(self.{key})" if key.endswith("Ref") else given(key) for key in _KEYS)
        + "].exists_one(given, given)",
    ),
    _connection(
        "secret reference is whole",
        " && ".join(f"(!has(self.{key}) || (has(self.{key}.name) && has(self.{key}.key)))" for key in _KEYS[2:]),
    ),
    _connection(
        "timeout is a duration",
        f"""!has(self.mqttTimeout) || (self.mqttTimeout.matches(r'{DURATION}')
        && duration(self.mqttTimeout) > duration('0s'))""",
    ),
)


# --- jobs, and what learns --------------------------------------------------------------------------------------------


def _job(name: str, expression: str) -> CelRule:
    return rule_of(Kind.JOB, name, expression)


# Longer chains before a cycle, the manager follows and tells in a condition.
_CHAIN: Final = 6


def _no_cycle(step: int = 1) -> str:
    """That by taking away the tasks that wait for none of those left, again and again, some go each time.

    CEL has no loop that ends when it is done, so the steps are written out.
    """
    before, after = f"left{step - 1}", f"left{step}"
    rest = (
        f"self.tasks.filter(t, has(t.dependsOn) && t.name in {before} && t.dependsOn.exists(d, d in {before}))"
        ".map(t, t.name)"
    )
    further = f" && {_no_cycle(step + 1)}" if step < _CHAIN else ""
    return f"[{rest}].all({after}, size({after}) == 0 || (size({after}) < size({before}){further}))"


_JOB_RULES: Final = (
    _job("tasks can be named", "!has(self.tasks) || self.tasks.all(t, t.name.matches('[A-Za-z0-9]'))"),
    _job(
        "dependencies are in the job",
        # A list of one binds a name, and what the API server reckons for it stays bounded.
        """!has(self.tasks) || [self.tasks.map(t, t.name) + (has(self.taskRefs) ? self.taskRefs : [])].all(names,
        self.tasks.all(t, !has(t.dependsOn) || t.dependsOn.all(d, d in names)))""",
    ),
    _job(
        "tasks have names of their own",
        """!has(self.tasks) || [self.tasks.map(t, t.name.lowerAscii())].all(names,
        names.all(name, names.exists_one(other, other == name)))""",
    ),
    _job("dependencies are no cycle", f"!has(self.tasks) || [self.tasks.map(t, t.name)].all(left0, {_no_cycle()})"),
    _job(
        "sequential jobs have no dependencies",
        """self.executionMode == 'configurable' || !has(self.tasks)
        || self.tasks.all(t, !has(t.dependsOn) || size(t.dependsOn) == 0)""",
    ),
    _job(
        "tasks of a job run once",
        "!has(self.tasks) || self.tasks.all(t, !has(t.isRecurring) || !t.isRecurring)",
    ),
)

_AFTER_START: Final = CelRule(
    f"{OF_STATUS} || (oldSelf.status.phase == 'Pending' && !has(oldSelf.status.startTime))"
    " || self.spec == oldSelf.spec",
    "has started: what it consists of cannot change any more; delete it and apply it again",
    ".spec",
)

# At the root are only rules that compare with what was: what breaks one of the others since before they were there, as
# an object of the reference may, must stay writable where its status, or its finalizers, are concerned. The API server
# sees to that, but only where the part that a rule is about has not changed.
RULES: Final[Mapping[str, tuple[CelRule, ...]]] = {
    **{kind.value: (_AFTER_START,) for kind in WORKS},
    "Task": (AFTER_DISPATCH,),
    "Task.spec": (*TASK_SPEC_RULES, TASK_GROUP_RULE),
    **{f"Task.{path}": rules for path, rules in TASK_FIELD_RULES.items()},  # also in a job
    "PropellerJob.spec.tasks[]": TASK_SPEC_RULES,
    "PropellerJob.spec": _JOB_RULES,
    "Proplet.spec": _PROPLET_RULES,
    "Proplet.spec.connectionConfig": _CONNECTION_RULES,
    **{
        f"{kind.value}.spec": (rule_of(kind, "enough updates, not too many", "self.kOfN <= size(self.participants)"),)
        for kind in (Kind.FEDERATED_JOB, Kind.ROUND)
    },
}

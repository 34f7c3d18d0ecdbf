"""The rules of the custom resource definitions, in CEL: those of `rules` that bounds cannot say, with their messages.

They take the place of admission webhooks. Each is an expression over `self`, the value at its path (`crd_schema`
explains paths); `field` is what the message is about, seen from there. The corpus in tests/manifests holds them to
`rules`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from proplet.manager import rules_proplet, rules_task, rules_work
from proplet.manager.crd_bounds import DURATION
from proplet.manager.model import WORKS, Kind, TaskSpec
from proplet.manager.reading import Rule, Shape, Style
from proplet.manager.rules_task import EDITABLE
from proplet.manager.scalars import BASE64, FLAG, TEXT
from proplet.manager.shapes import MapOf, Sequence
from proplet.manager.vocabulary import TASK_SPEC


@dataclass(frozen=True, slots=True)
class CelRule:
    """One entry of `x-kubernetes-validations`. `told`: an expression whose value is the message, instead of it."""

    expression: str
    message: str
    field: str = ""
    told: str = ""

    def plain(self) -> dict[str, str]:
        """The entry as the definition has it."""
        out = {"rule": self.expression, "message": self.message}
        if self.told:
            out["messageExpression"] = self.told
        return {**out, "fieldPath": self.field} if self.field else out


_BY_NAME: Final[Mapping[tuple[Kind, str], Rule]] = {
    (rule.kind, rule.name): rule for rule in rules_task.TASK_RULES + rules_proplet.PROPLET_RULES + rules_work.WORK_RULES
}


def _rule(kind: Kind, name: str, expression: str, *, at: str = "spec") -> CelRule:
    """The rule of ours called `name` as an expression at the path `at`; it has its message and its field."""
    rule = _BY_NAME[kind, name]
    field = rule.path.removeprefix(at) if at else f".{rule.path}"
    return CelRule(" ".join(expression.split()), rule.message, field)


def _task(name: str, expression: str) -> CelRule:
    return _rule(Kind.TASK, name, expression)


def _given(name: str) -> str:
    """That a text or a list is there and not empty: clients of Go write empty ones."""
    return f"(has(self.{name}) && size(self.{name}) > 0)"


def _is(name: str) -> str:
    return f"(has(self.{name}) && self.{name})"


# --- Tasks, also those that stand in a job ----------------------------------------------------------------------------


def _cron_field(value: str, extra: str = "") -> str:
    entry = rf"([*?]|{value}(-{value})?)(/[0-9]+)?{extra}"
    return rf"{entry}(,{entry})*"


_CRON: Final = r"\s+".join(
    (
        _cron_field("0*[0-5]?[0-9]"),
        _cron_field("0*(1?[0-9]|2[0-3])"),
        f"({_cron_field('(0*([1-9]|[12][0-9]|3[01])|L|LW)')})",
        _cron_field("(0*([1-9]|1[0-2])|(?i:JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC))"),
        _cron_field("(0*[0-7]|(?i:SUN|MON|TUE|WED|THU|FRI|SAT))", "(#[1-5]|L)?"),
    )
)
# What it cannot say, a day that no month has and a zone that nobody knows, the manager tells in a condition.
CRON: Final = rf"^\s*((CRON_)?TZ=\S*\s+)?{_CRON}\s*$"

NO_NULL: Final = "each of inputs must be a number, a string, true or false, not null"
TASK_SPEC_RULES: Final = (
    _task("a module is given", f"{_given('imageUrl')} || {_given('file')}"),
    _task("only one module is given", f"!({_given('imageUrl')} && {_given('file')})"),
    # The four bytes in base64. A fifth follows in every module, the version's, whose first bits are zero.
    _task("file is WebAssembly", "!has(self.file) || size(self.file) == 0 || self.file.startsWith('AGFzbQ')"),
    # By way of `dyn`, because without a type for its items CEL does not know the field.
    CelRule("!has(dyn(self).inputs) || dyn(self).inputs.all(input, input != null)", NO_NULL, ".inputs"),
    _task("encrypted modules are images", f"!{_is('encrypted')} || {_given('imageUrl')}"),
    _task(
        "broadcast or one proplet",
        f"!{_is('broadcast')} || !has(self.propletSelector) || !{_given('propletSelector.propletId')}",
    ),
    _task("recurrence has a schedule", f"!{_is('isRecurring')} || {_given('schedule')}"),
    _task("schedule is cron", f"!has(self.schedule) || self.schedule.matches(r'''{CRON}''')"),
    _task(
        "one time zone",
        f"""!{_given("schedule")} || !{_given("timezone")} || !self.schedule.matches(r'^\\s*(CRON_)?TZ=\\S')
        || self.schedule.trim().startsWith('TZ=' + self.timezone + ' ')
        || self.schedule.trim().startsWith('CRON_TZ=' + self.timezone + ' ')""",
    ),
    _task(
        "environment names",
        r"!has(self.env) || self.env.all(name, size(name) > 0 && !name.contains('='))",
    ),
    _task(
        "secret references",
        "!has(self.envSecrets) || self.envSecrets.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$'))",
    ),
    _task(
        "one source of a variable",
        "!has(self.env) || !has(self.envSecrets) || self.envSecrets.all(name, !(name in self.env))",
    ),
    _task(
        "directories are absolute",
        """!has(self.permissions) || !has(self.permissions.dirs)
        || self.permissions.dirs.all(d, d.host.startsWith('/') && size(d.guest) > 0)""",
    ),
)

_TASK_GROUP: Final = _rule(
    Kind.TASK,
    "dependencies have a group",
    f"!{_given('spec.dependsOn')} || {_given('spec.workflowId')} || {_given('spec.jobId')}",
    at="",
)


# --- a Task after its dispatch ----------------------------------------------------------------------------------------


def _frozen() -> dict[str, str]:
    """For each field that says what runs, by its name in a manifest: the expression that it is as it was."""
    out = {}
    for spec_field in fields(TaskSpec):
        if spec_field.name in EDITABLE:
            continue
        entry = next(entry for entry in TASK_SPEC.fields if entry.attribute == spec_field.name)
        name = entry.spellings(Style.MANIFEST)[0]
        out[name] = _unchanged(name, entry.shape)
    # Its items have no type, so that CEL does not know this field; but it compares what it does not know.
    old, new = "dyn(oldSelf.spec).inputs", "dyn(self.spec).inputs"
    out["inputs"] = f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
    return out


def _unchanged(name: str, shape: Shape) -> str:
    old, new = f"oldSelf.spec.{name}", f"self.spec.{name}"
    # A field at its default and one that is not given are the same; clients of Go write many defaults.
    defaults: Mapping[Any, str] = {FLAG: "false", TEXT: "''", BASE64: "''"}
    default = "{}" if isinstance(shape, MapOf) else "[]" if isinstance(shape, Sequence) else defaults.get(shape)
    if default is None:
        return f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
    return f"(has({new}) ? {new} : {default}) == (has({old}) ? {old} : {default})"


_FROZEN: Final = _frozen()

_AFTER_DISPATCH: Final = CelRule(
    "self.spec == oldSelf.spec || !has(oldSelf.status)"
    " || !((has(oldSelf.status.attempts) && oldSelf.status.attempts > 0)"
    " || oldSelf.status.phase == 'scheduled' || oldSelf.status.phase == 'running')"
    " || (has(self.spec.isRecurring) && self.spec.isRecurring"
    " && has(oldSelf.spec.isRecurring) && oldSelf.spec.isRecurring)"
    " || (" + " && ".join(f"({expression})" for expression in _FROZEN.values()) + ")",
    "the Task has been dispatched: what it runs cannot change any more",
    ".spec",
    "'the Task has been dispatched; what cannot change any more:'"
    + "".join(f" + (({expression}) ? '' : ' spec.{name}')" for name, expression in _FROZEN.items()),
)


# --- Proplets ---------------------------------------------------------------------------------------------------------


def _proplet(name: str, expression: str) -> CelRule:
    return _rule(Kind.PROPLET, name, expression)


def _connection(name: str, expression: str) -> CelRule:
    return _rule(Kind.PROPLET, name, expression, at="spec.connectionConfig")


_KEYS: Final = ("clientKey", "apiKey", "clientKeySecretRef", "apiKeySecretRef")
_PROPLET_RULES: Final = (
    _proplet("type k8s has its block", "self.type != 'k8s' || (has(self.k8s) && has(self.k8s.image))"),
    _proplet("type external has no k8s block", "self.type != 'external' || !has(self.k8s)"),
    _proplet("type k8s has no external block", "self.type != 'k8s' || !has(self.external)"),
)
_CONNECTION_RULES: Final = (
    _connection("connection names its domain", f"{_given('domainId')} || {_given('tenantId')}"),
    _connection("connection names its channel", _given("channelId")),
    _connection("connection names its client", f"{_given('clientId')} || {_given('entityId')}"),
    _connection("one name of the domain", "!has(self.domainId) || !has(self.tenantId)"),
    _connection("one name of the client", "!has(self.clientId) || !has(self.entityId)"),
    _connection(
        "one source of the key",
        "["
        + ", ".join(f"has(self.{key})" if key.endswith("Ref") else _given(key) for key in _KEYS)
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
    return _rule(Kind.JOB, name, expression)


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
    "self.spec == oldSelf.spec || !has(oldSelf.status)"
    " || (oldSelf.status.phase == 'Pending' && !has(oldSelf.status.startTime))",
    "has started: what it consists of cannot change any more; delete it and apply it again",
    ".spec",
)

RULES: Final[Mapping[str, tuple[CelRule, ...]]] = {
    **{kind.value: (_AFTER_START,) for kind in WORKS},
    "Task": (_TASK_GROUP, _AFTER_DISPATCH),
    "Task.spec": TASK_SPEC_RULES,
    "PropellerJob.spec.tasks[]": TASK_SPEC_RULES,
    "PropellerJob.spec": _JOB_RULES,
    "Proplet.spec": _PROPLET_RULES,
    "Proplet.spec.connectionConfig": _CONNECTION_RULES,
    **{
        f"{kind.value}.spec": (_rule(kind, "enough updates, not too many", "self.kOfN <= size(self.participants)"),)
        for kind in (Kind.FEDERATED_JOB, Kind.ROUND)
    },
}

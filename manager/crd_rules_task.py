"""The rules of Tasks in CEL, also of those that stand in a job; and what of a Task cannot change after its dispatch."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from proplet.manager.crd_cel import OF_STATUS, CelRule, given, is_true, rule_of, text
from proplet.manager.model import Kind, TaskSpec
from proplet.manager.reading import Shape, Style
from proplet.manager.rules_task import EDITABLE
from proplet.manager.scalars import BASE64, FLAG, TEXT
from proplet.manager.shapes import MapOf, Sequence
from proplet.manager.vocabulary import TASK_SPEC


def _task(name: str, expression: str, *, at: str = "spec") -> CelRule:
    return rule_of(Kind.TASK, name, expression, at=at)


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
# The API server evaluates each of them at every write of a status, too, and every field that one asks for in an object
# costs as much as that has fields in its schema; so what is about one field stands at that, and is free where it is not
# given, and none asks twice.
TASK_FIELD_RULES: Final[Mapping[str, tuple[CelRule, ...]]] = {
    path: tuple(_task(name, expression, at=path) for name, expression in rules.items())
    for path, rules in {
        # The four bytes in base64. A fifth follows in every module, the version's, whose first bits are zero.
        "spec.file": {"file is WebAssembly": "size(self) == 0 || self.startsWith('AGFzbQ')"},
        "spec.schedule": {"schedule is cron": f"self.matches(r'''{CRON}''')"},
        "spec.env": {"environment names": "self.all(name, size(name) > 0 && !name.contains('='))"},
        "spec.envSecrets": {"secret references": "self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$'))"},
        "spec.permissions.dirs": {
            "directories are absolute": "self.all(d, d.host.startsWith('/') && size(d.guest) > 0)"
        },
    }.items()
}
TASK_SPEC_RULES: Final = (
    _task("a module is given", f"{text('imageUrl')} != '' || {text('file')} != ''"),
    _task("only one module is given", f"{text('imageUrl')} == '' || {text('file')} == ''"),
    # By way of `dyn`, because without a type for its items CEL does not know the field. Where it is missing, the first
    # part is an error, which the second makes up for.
    CelRule("dyn(self).inputs.all(input, input != null) || !has(dyn(self).inputs)", NO_NULL, ".inputs"),
    _task("encrypted modules are images", f"!{is_true('encrypted')} || {given('imageUrl')}"),
    _task(
        "broadcast or one proplet",
        f"!{is_true('broadcast')} || !has(self.propletSelector) || !{given('propletSelector.propletId')}",
    ),
    _task("latent or daemon", f"!({is_true('latent')} && {is_true('daemon')})"),
    _task("recurrence has a schedule", f"!{is_true('isRecurring')} || {given('schedule')}"),
    _task(
        "one time zone",
        f"""!{given("schedule")} || !{given("timezone")} || !self.schedule.matches(r'^\\s*(CRON_)?TZ=\\S')
        || self.schedule.trim().startsWith('TZ=' + self.timezone + ' ')
        || self.schedule.trim().startsWith('CRON_TZ=' + self.timezone + ' ')""",
    ),
    _task(
        "one source of a variable",
        "!has(self.envSecrets) || !has(self.env) || self.envSecrets.all(name, !(name in self.env))",
    ),
)

# Not of a job's tasks: they are the job's group.
TASK_GROUP_RULE: Final = _task(
    "dependencies have a group", f"!{given('dependsOn')} || {given('workflowId')} || {given('jobId')}"
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

AFTER_DISPATCH: Final = CelRule(
    f"{OF_STATUS}"
    " || !((has(oldSelf.status.attempts) && oldSelf.status.attempts > 0)"
    " || oldSelf.status.phase == 'scheduled' || oldSelf.status.phase == 'running')"
    " || self.spec == oldSelf.spec"
    " || (has(self.spec.isRecurring) && self.spec.isRecurring"
    " && has(oldSelf.spec.isRecurring) && oldSelf.spec.isRecurring)"
    " || (" + " && ".join(f"({expression})" for expression in _FROZEN.values()) + ")",
    "the Task has been dispatched: what it runs cannot change any more",
    ".spec",
    "'the Task has been dispatched; what cannot change any more:'"
    + "".join(f" + (({expression}) ? '' : ' spec.{name}')" for name, expression in _FROZEN.items()),
)

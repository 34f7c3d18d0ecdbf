"""Rules in CEL, as custom resource definitions hold them beside their schemas, and words to write them with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proplet.manager import rules_proplet, rules_task, rules_work
from proplet.manager.model import Kind
from proplet.manager.reading import Rule


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


def rule_of(kind: Kind, name: str, expression: str, *, at: str = "spec") -> CelRule:
    """The rule of ours called `name` as an expression at the path `at`; it has its message and its field."""
    rule = _BY_NAME[kind, name]
    return CelRule(" ".join(expression.split()), rule.message, rule.path.removeprefix(at))


def given(name: str) -> str:
    """That a text or a list is there and not empty: clients of Go write empty ones."""
    return f"(has(self.{name}) && size(self.{name}) > 0)"


def is_true(name: str) -> str:
    """That a flag is there and set."""
    return f"(has(self.{name}) && self.{name})"


def text(name: str) -> str:
    """The text of a field, '' where it is not given; asked for once, which costs less than `given`."""
    return f"self.?{name}.orValue('')"


# At the root: that this is the write of a status, which cannot change the spec (nor can another change the status). It
# only recognizes those that are frequent, and at a fraction of what comparing the specs costs.
OF_STATUS: Final = "!has(oldSelf.status) || !has(self.status) || self.status.phase != oldSelf.status.phase"

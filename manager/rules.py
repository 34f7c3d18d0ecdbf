"""The rules that resources must keep, once, as a list; what the shapes of its values cannot say.

The custom resource definitions' rules are held to this list by the corpus in tests/manifests.
"""

import re
from typing import Final

from proplet.manager.model import WORKS, Meta, PropellerJob, Resource, Task
from proplet.manager.reading import Problem
from proplet.manager.rules_proplet import PROPLET_RULES
from proplet.manager.rules_task import MODULE_GIVEN, TASK_RULES, frozen_changes, unsupported
from proplet.manager.rules_work import WORK_RULES, check_tasks, frozen_in_works

__all__ = ["MODULE_GIVEN", "RULES", "check", "check_meta", "frozen", "frozen_changes", "unsupported"]

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ANNOTATION_BYTES: Final = 256 * 1024

RULES: Final = TASK_RULES + PROPLET_RULES + WORK_RULES


def check(resource: Resource, *, ignoring: str = "") -> list[Problem]:
    """Return what is wrong with a resource: nothing, or every rule it breaks, and its name's and labels' mistakes.

    `ignoring` names a rule that does not hold here.
    """
    problems = check_meta(resource.meta)
    problems += [
        Problem(rule.path, rule.message)
        for rule in RULES
        if rule.kind is resource.kind and rule.name != ignoring and rule.broken(resource)
    ]
    if isinstance(resource, PropellerJob):
        problems += check_tasks(resource, ignoring)
    return problems


def frozen(old: Resource, new: Resource) -> list[str]:
    """Return the paths of the fields that `new` changes although `old` has begun; none: it may be stored."""
    if isinstance(old, Task) and isinstance(new, Task):
        return frozen_changes(old, new)
    return frozen_in_works(old, new) if old.kind in WORKS else []


def check_meta(meta: Meta) -> list[Problem]:
    """Return what is wrong with the name, namespace, labels and annotations, by Kubernetes' rules."""
    problems = []
    if not meta.name:
        problems.append(Problem("metadata.name", "is required"))
    elif len(meta.name) > 253 or not _SUBDOMAIN.fullmatch(meta.name):
        problems.append(
            Problem("metadata.name", "must be lower case letters, digits, - and ., at most 253, not at its ends - or .")
        )
    if len(meta.namespace) > 63 or not _LABEL.fullmatch(meta.namespace):
        problems.append(Problem("metadata.namespace", "must be lower case letters, digits and -, at most 63"))
    for where, mapping in (("labels", meta.labels), ("annotations", meta.annotations)):
        for key, value in mapping.items():
            path = f"metadata.{where}.{key[:80]}"
            if not _qualified_key(key):
                problems.append(Problem(path, "the name must be [PREFIX/]NAME of letters, digits, -, _ and ."))
            if where == "labels" and value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
                problems.append(Problem(path, "must be letters, digits, -, _ and ., at most 63"))
    if sum(len(key) + len(value) for key, value in meta.annotations.items()) > _ANNOTATION_BYTES:
        problems.append(Problem("metadata.annotations", "must not be larger than 256 KiB in all"))
    return problems


def _qualified_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        return False
    return len(name) <= 63 and _QUALIFIED.fullmatch(name) is not None

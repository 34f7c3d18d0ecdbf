"""The bounds, defaults and required fields of the custom resource definitions, by path; `crd_schema` explains paths.

What a bound can say, no rule says again. Those that no rule of ours knows (how many items a list has) are there because
the API server asks what its rules may cost at most; they are far beyond what fits in an object.
"""

from collections.abc import Mapping
from typing import Any, Final

from proplet.manager.rules_work import ALGORITHMS

# The API server's patterns are RE2's.
_NUMBER: Final = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
_MORE_THAN_ZERO: Final = r"([0-9]*[1-9][0-9]*(\.[0-9]*)?|[0-9]*\.[0-9]*[1-9][0-9]*)"
_SUFFIX: Final = r"([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?"
_UNIT: Final = r"(ns|us|µs|μs|ms|s|m|h)"

QUANTITY: Final = rf"^\+?{_NUMBER}{_SUFFIX}$"
DURATION: Final = rf"^(0|({_NUMBER}{_UNIT})+)$"
SOME_QUANTITY: Final = rf"^\+?{_MORE_THAN_ZERO}{_SUFFIX}$"
SOME_TIME: Final = rf"^({_NUMBER}{_UNIT})*{_MORE_THAN_ZERO}{_UNIT}({_NUMBER}{_UNIT})*$"

_SOMETHING: Final = {"minLength": 1}
_NAME: Final = {"minLength": 1, "maxLength": 253}
_NOT_NEGATIVE: Final = {"minimum": 0}
_POSITIVE: Final = {"minimum": 0, "exclusiveMinimum": True}
_COUNT: Final = {"minimum": 1}
_SIZE: Final = {"minimum": 1, "pattern": SOME_QUANTITY}
_TIME: Final = {**_POSITIVE, "pattern": SOME_TIME}
_BY_TYPE: Final = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
_BY_PROPLET: Final = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["propletId"]}
_A_SET: Final = {"x-kubernetes-list-type": "set"}

_TASK: Final[Mapping[str, Mapping[str, Any]]] = {
    "Task.spec.name": _NAME,
    "Task.spec.functionName": {"maxLength": 253},
    "Task.spec.kind": {"enum": ["standard", "federated"], "default": "standard"},
    "Task.spec.inputs": {"maxItems": 65536},
    "Task.spec.env": {"maxProperties": 1024},
    "Task.spec.envSecrets": {"maxProperties": 256},
    # Of the shape, which is any object; the rule "secret references" says this of it.
    "Task.spec.envSecrets{}": {
        "x-kubernetes-preserve-unknown-fields": None,
        "properties": {
            "name": {"description": "The Secret's name.", "type": "string", **_SOMETHING},
            "key": {"description": "The key in the Secret.", "type": "string", **_SOMETHING},
        },
        "required": ["name", "key"],
    },
    "Task.spec.preferredPropletType": {"enum": ["any", "external", "k8s"], "default": "any"},
    "Task.spec.mode": {"enum": ["infer", "train"]},
    "Task.spec.monitoringProfile.interval": {
        "minimum": 0.001,
        "maximum": 1_000_000_000,
        "exclusiveMaximum": True,
        "pattern": SOME_TIME,
    },
    "Task.spec.monitoringProfile.historySize": _NOT_NEGATIVE,
    "Task.spec.backoffLimit": _NOT_NEGATIVE,
    "Task.spec.activeDeadlineSeconds": _POSITIVE,
    "Task.spec.ttlSecondsAfterFinished": _NOT_NEGATIVE,
    "Task.spec.limits.memory": _SIZE,
    "Task.spec.limits.cpuTime": _TIME,
    "Task.spec.limits.stack": _SIZE,
    "Task.spec.limits.fuel": _COUNT,
    "Task.spec.permissions.dirs": {"maxItems": 256},
    "Task.spec.dependsOn": {"maxItems": 100},
    "Task.spec.dependsOn[]": {"maxLength": 253},
    "Task.spec.runIf": {"enum": ["success", "failure"]},
    "Task.spec.schedule": {"maxLength": 256},
    "Task.spec.timezone": {"maxLength": 256},
    "Task.spec.concurrencyPolicy": {"enum": ["Allow", "Forbid", "Replace"]},
    "Task.spec.startingDeadlineSeconds": _POSITIVE,
    "Task.spec.priority": {"minimum": 0, "maximum": 100, "default": 50},
    "Task.status.phase": {"default": "pending"},
    "Task.status.conditions": _BY_TYPE,
    # Another manager, the reference's, may have written any JSON value.
    "Task.status.results": {"type": None, "x-kubernetes-preserve-unknown-fields": True},
    # A newer manager may know further ones.
    "Task.status.reason": {"enum": None},
}

_PROPLET: Final[Mapping[str, Mapping[str, Any]]] = {
    "Proplet.spec.type": {"enum": ["external", "k8s"]},
    "Proplet.spec.k8s.image": _SOMETHING,
    "Proplet.spec.k8s.logLevel": {"enum": ["debug", "info", "warn", "error"], "default": "info"},
    "Proplet.spec.k8s.replicas": {"format": "int32", "minimum": 0, "maximum": 100, "default": 1},
    "Proplet.spec.connectionConfig.mqttTimeout": {"maxLength": 64, "default": "30s"},
    "Proplet.spec.connectionConfig.mqttQos": {"minimum": 0, "maximum": 2},
    **{
        f"Proplet.spec.connectionConfig.{reference}.{part}": _SOMETHING
        for reference in ("clientKeySecretRef", "apiKeySecretRef")
        for part in ("name", "key")
    },
    "Proplet.status.phase": {"default": "Initializing"},
    "Proplet.status.taskCount": {"default": 0},
    "Proplet.status.conditions": _BY_TYPE,
    "Proplet.status.k8sStatus.readyReplicas": {"format": "int32", "minimum": 0},
    "Proplet.status.k8sStatus.availableReplicas": {"format": "int32", "minimum": 0},
}

_JOB: Final[Mapping[str, Mapping[str, Any]]] = {
    "PropellerJob.spec.name": _NAME,
    "PropellerJob.spec.executionMode": {"default": "configurable"},
    "PropellerJob.spec.tasks": {
        "maxItems": 256,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    },
    "PropellerJob.spec.taskRefs": {"maxItems": 4096, **_A_SET},
    "PropellerJob.spec.taskRefs[]": _NAME,
    "PropellerJob.status.phase": {"default": "Pending"},
    "PropellerJob.status.taskCount": {"default": 0},
    "PropellerJob.status.completedCount": {"default": 0},
    "PropellerJob.status.failedCount": {"default": 0},
    "PropellerJob.status.conditions": _BY_TYPE,
}

_LEARNING: Final[Mapping[str, Mapping[str, Any]]] = {
    "FederatedJob.spec.experimentId": _SOMETHING,
    "FederatedJob.spec.modelRef": _SOMETHING,
    "FederatedJob.spec.taskWasmImage": _SOMETHING,
    "FederatedJob.spec.participants": {"minItems": 1, "maxItems": 4096, **_BY_PROPLET},
    "FederatedJob.spec.participants[].propletId": _NAME,
    "FederatedJob.spec.kOfN": _COUNT,
    "FederatedJob.spec.timeoutSeconds": _COUNT,
    "FederatedJob.spec.rounds.total": {"minimum": 1, "maximum": 10_000, "default": 1},
    "FederatedJob.spec.aggregator.algorithm": {"enum": list(ALGORITHMS)},
    "FederatedJob.status.phase": {"default": "Pending"},
    "FederatedJob.status.currentRound": {"default": 0},
    "FederatedJob.status.completedRounds": {"default": 0},
    "FederatedJob.status.conditions": _BY_TYPE,
    "TrainingRound.spec.roundId": _SOMETHING,
    "TrainingRound.spec.federatedJobRef.name": _NAME,
    "TrainingRound.spec.modelRef": _SOMETHING,
    "TrainingRound.spec.taskWasmImage": _SOMETHING,
    "TrainingRound.spec.participants": {"minItems": 1, "maxItems": 4096, **_A_SET},
    "TrainingRound.spec.participants[]": _NAME,
    "TrainingRound.spec.kOfN": _COUNT,
    "TrainingRound.spec.timeoutSeconds": _COUNT,
    "TrainingRound.spec.algorithm": {"enum": ["", *ALGORITHMS]},
    "TrainingRound.status.phase": {"default": "Pending"},
    "TrainingRound.status.updatesReceived": {"default": 0},
    "TrainingRound.status.updatesRequired": {"default": 0},
    "TrainingRound.status.conditions": _BY_TYPE,
}

# A None takes away what the shape says.
BOUNDS: Final[Mapping[str, Mapping[str, Any]]] = {**_TASK, **_PROPLET, **_JOB, **_LEARNING}

_LEARNS: Final = ("modelRef", "taskWasmImage", "participants", "kOfN", "timeoutSeconds")
REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "Task.spec": ("name",),
    "Task.status.conditions[]": ("type",),
    "Proplet.spec": ("type",),
    "Proplet.spec.k8s.identitiesSecretRef": ("name",),
    "Proplet.spec.k8s.tlsSecretRef": ("name",),
    "Proplet.status.conditions[]": ("type",),
    "PropellerJob.spec": ("name",),
    "PropellerJob.status.conditions[]": ("type",),
    "FederatedJob.spec": ("experimentId", *_LEARNS, "aggregator"),
    "FederatedJob.spec.participants[]": ("propletId",),
    "FederatedJob.spec.aggregator": ("algorithm",),
    "FederatedJob.status.conditions[]": ("type",),
    "TrainingRound.spec": ("roundId", "federatedJobRef", *_LEARNS),
    "TrainingRound.spec.federatedJobRef": ("name",),
    "TrainingRound.status.conditions[]": ("type",),
}

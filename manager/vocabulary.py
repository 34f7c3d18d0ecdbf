"""The one vocabulary of Tasks and Proplets, as literal tables: attribute, shape, spelling in manifests and in REST.

Where no name is given, the manifest has the attribute's name in camel case and REST the attribute's name itself. Jobs
and rounds have theirs in `vocabulary_work`. Source of the names: both eras of the reference's custom resources and of
its HTTP API; ours beside them.
"""

from collections.abc import Mapping
from typing import Final

from proplet.agent import wire
from proplet.manager import model
from proplet.manager.phases import Phase
from proplet.manager.reading import Shape
from proplet.manager.scalars import (
    BASE64,
    BYTES,
    CPU,
    FLAG,
    MOMENT,
    NUMBER,
    OBJECT,
    QUANTITY_TEXT,
    SCALAR,
    SECONDS,
    TEXT,
    WHOLE,
    ConditionShape,
    IntervalShape,
    choice,
)
from proplet.manager.shapes import Field, Keyed, MapOf, Record, ResourceList, Sequence, Spelled

TEXTS: Final = Sequence(TEXT)
TEXT_MAP: Final = MapOf(TEXT)

SELECTOR: Final = Record(
    model.PropletSelector,
    (
        Field("proplet_id", TEXT),
        Field("match_labels", TEXT_MAP),
        Field("match_device_types", TEXTS),
        Field("match_capabilities", TEXTS),
    ),
)

RESOURCES: Final = Record(
    model.Resources,
    (
        Field("cpu", CPU),
        Field("memory_bytes", BYTES, ("memory",), "memory"),
        Field("custom", MapOf(QUANTITY_TEXT)),
    ),
)

MONITORING: Final = Record(
    wire.MonitoringProfile,
    (
        Field("enabled", FLAG),
        Field("interval", IntervalShape()),
        Field("collect_cpu", FLAG),
        Field("collect_memory", FLAG),
        Field("collect_disk_io", FLAG, ("collectDiskIo", "collectDiskIO")),
        Field("collect_threads", FLAG),
        Field("collect_file_descriptors", FLAG),
        Field("export_to_mqtt", FLAG, ("exportToMqtt", "exportToMQTT")),
        Field("retain_history", FLAG),
        Field("history_size", WHOLE),
    ),
    whole_in_rest=True,  # to the reference's Go clients a missing flag is false
)

LIMITS: Final = Record(
    wire.Limits,
    (
        Field("memory_bytes", BYTES, ("memory",), "memory"),
        Field("cpu_s", SECONDS, ("cpuTime",), "cpu_time"),
        Field("output_bytes", BYTES, ("output",), "output"),
        Field("stack_bytes", BYTES, ("stack",), "stack"),
        Field("fuel", WHOLE),
    ),
)

PERMISSIONS: Final = Record(
    wire.Permissions,
    (
        Field(
            "dirs",
            Sequence(
                Record(wire.DirectoryGrant, (Field("host", TEXT), Field("guest", TEXT), Field("read_only", FLAG)))
            ),
        ),
        Field("http", TEXTS),
        Field("tcp", TEXTS),
    ),
)

TASK_SPEC: Final = Record(
    model.TaskSpec,
    (
        Field("name", TEXT),
        Field("function_name", TEXT),
        Field("kind", TEXT),
        Field("image_url", TEXT),
        Field("file", BASE64),
        Field("inputs", Sequence(SCALAR)),
        Field("cli_args", TEXTS),
        Field("env", TEXT_MAP),
        Field("env_secrets", MapOf(OBJECT)),
        Field("selector", SELECTOR, ("propletSelector",), "proplet_selector"),
        Field("preferred_proplet_type", TEXT),
        Field("resources", RESOURCES, ("resourceRequirements",), "resource_requirements"),
        Field("daemon", FLAG),
        Field("latent", FLAG),
        Field("broadcast", FLAG),
        Field("mode", TEXT),
        Field("monitoring_profile", MONITORING),
        Field("restart_policy", choice(wire.RestartPolicy)),
        Field("backoff_limit", WHOLE),
        Field("active_deadline_seconds", NUMBER),
        Field("ttl_seconds_after_finished", WHOLE),
        Field("pull_policy", choice(wire.PullPolicy)),
        Field("limits", LIMITS),
        Field("permissions", PERMISSIONS),
        Field("encrypted", FLAG),
        Field("kbs_resource_path", TEXT),
        Field("hal_storage_path", TEXT),
        Field("depends_on", TEXTS),
        Field("run_if", TEXT),
        Field("workflow_id", TEXT),
        Field("job_id", TEXT),
        Field("schedule", TEXT),
        Field("timezone", TEXT),
        Field("is_recurring", FLAG),
        Field("suspend", FLAG),
        Field("concurrency_policy", TEXT),
        Field("starting_deadline_seconds", NUMBER),
        Field("priority", WHOLE),
        Field("metadata", OBJECT),
        # Only on a standalone node: it waits for somebody's start.
        Field("held", FLAG),
    ),
)

CONDITIONS: Final = Sequence(
    Record(
        model.Condition,
        (
            Field("type", TEXT),
            Field("status", ConditionShape()),
            Field("reason", TEXT),
            Field("message", TEXT),
            Field("last_transition_time", MOMENT),
        ),
    )
)

_COSTS: Final[Mapping[str, Shape]] = {
    "cpu_seconds": NUMBER,
    "peak_memory_bytes": WHOLE,
    "wall_seconds": MapOf(NUMBER),
    "start_kind": TEXT,
    "memory_note": TEXT,
    "fuel_used": WHOLE,
    "invocations": WHOLE,
    "restarts": WHOLE,
}

USAGE: Final = Record(wire.Usage, tuple(Field(name, shape) for name, shape in _COSTS.items()))

BROADCAST_RESULT: Final = Spelled(
    {
        "proplet_id": TEXT,
        "phase": TEXT,
        "results": TEXT,
        "error": TEXT,
        "reason": TEXT,
        "exit_code": WHOLE,
        "usage": Spelled(_COSTS),
        "finished_at": MOMENT,
    }
)

# The two fields that every kind's status shares with its `meta` are written by `manifest`: createdAt and updatedAt.
TASK_STATUS: Final = Record(
    model.TaskStatus,
    (
        Field("phase", choice(Phase)),
        Field("proplet_id", TEXT, rest=""),
        Field("attempt", WHOLE, ("attempts",), "attempts"),
        Field("failures", WHOLE),
        Field("stop_requested", FLAG),
        Field("dispatched_at", MOMENT),
        Field("started_at", MOMENT, rest=""),
        Field("finished_at", MOMENT, rest=""),
        Field("next_run", MOMENT, rest=""),
        Field("not_before", MOMENT),
        Field("results", TEXT),
        Field("error", TEXT),
        Field("reason", choice(wire.Reason)),
        Field("message", TEXT),
        Field("exit_code", WHOLE),
        Field("resolved_image", TEXT),
        Field("usage", USAGE),
        Field("broadcast_results", Sequence(BROADCAST_RESULT)),
        Field("conditions", CONDITIONS),
        Field("observed_generation", WHOLE),
        # The reference's name, which its printer columns show; the name of the Proplet resource.
        Field("assigned_proplet", TEXT, rest=""),
    ),
)

_SECRET_REFERENCE: Final = Keyed({"name": TEXT, "key": TEXT, "optional": FLAG})

# Kept as the manifest wrote it: both eras' names mean the same, and the one given is the one shown again.
CONNECTION: Final = Keyed(
    {
        "domainId": TEXT,
        "tenantId": TEXT,
        "channelId": TEXT,
        "clientId": TEXT,
        "entityId": TEXT,
        "clientKey": TEXT,
        "apiKey": TEXT,
        "clientKeySecretRef": _SECRET_REFERENCE,
        "apiKeySecretRef": _SECRET_REFERENCE,
        "mqttAddress": TEXT,
        "mqttTimeout": TEXT,
        "mqttQos": WHOLE,
    }
)

# What a proplet of type k8s is told through its pod's environment: field by variable.
K8S_ENVIRONMENT: Final = {
    "livelinessInterval": ("PROPLET_LIVELINESS_INTERVAL", TEXT),
    "metricsInterval": ("PROPLET_METRICS_INTERVAL", TEXT),
    "metricsPort": ("PROPLET_METRICS_PORT", WHOLE),
    "metricsEnabled": ("PROPLET_METRICS_ENABLED", FLAG),
    "externalWasmRuntime": ("PROPLET_EXTERNAL_WASM_RUNTIME", TEXT),
    "halEnabled": ("PROPLET_HAL_ENABLED", FLAG),
    "httpEnabled": ("PROPLET_HTTP_ENABLED", FLAG),
    "usbEnabled": ("PROPLET_USB_ENABLED", FLAG),
    "otelUrl": ("PROPLET_OTEL_URL", TEXT),
    "traceRatio": ("PROPLET_TRACE_RATIO", TEXT),
    "tags": ("PROPLET_TAGS", TEXT),
    "location": ("PROPLET_LOCATION", TEXT),
    "description": ("PROPLET_DESCRIPTION", TEXT),
    "kbsUri": ("PROPLET_KBS_URI", TEXT),
    "aaConfigPath": ("PROPLET_AA_CONFIG_PATH", TEXT),
    "mqttTlsCaCert": ("PROPLET_MQTT_TLS_CA_CERT", TEXT),
    "mqttTlsClientCert": ("PROPLET_MQTT_TLS_CLIENT_CERT", TEXT),
    "mqttTlsClientKey": ("PROPLET_MQTT_TLS_CLIENT_KEY", TEXT),
    "mqttTlsInsecureSkipVerify": ("PROPLET_MQTT_TLS_INSECURE_SKIP_VERIFY", FLAG),
}
K8S: Final = Keyed(
    {
        "image": TEXT,
        "logLevel": TEXT,
        "replicas": WHOLE,
        "pluginDir": TEXT,
        "env": Keyed({name: shape for name, (_, shape) in K8S_ENVIRONMENT.items()}),
        # Beyond the reference: how the image is had, as whom the pod runs, and the identities of more than one replica.
        "imagePullPolicy": TEXT,
        "imagePullSecrets": TEXTS,
        "serviceAccountName": TEXT,
        "nodeSelector": TEXT_MAP,
        "identitiesSecretRef": Keyed({"name": TEXT}),
        "tlsSecretRef": Keyed({"name": TEXT}),
    }
)

PROPLET_SPEC: Final = Keyed(
    {
        "type": TEXT,
        "external": Keyed({"deviceType": TEXT, "capabilities": TEXTS}),
        "k8s": K8S,
        "resources": ResourceList(),
        "connectionConfig": CONNECTION,
        # Only on a standalone node: false for a proplet that announced itself.
        "declared": FLAG,
    }
)

PROPLET_METADATA: Final = Record(
    wire.Metadata,
    (
        Field("description", TEXT),
        Field("tags", TEXTS),
        Field("location", TEXT),
        Field("ip", TEXT),
        Field("environment", TEXT),
        Field("os", TEXT),
        Field("hostname", TEXT),
        Field("cpu_arch", TEXT),
        Field("total_memory_bytes", WHOLE),
        Field("proplet_version", TEXT),
        Field("wasm_runtime", TEXT),
    ),
)

REPLICAS: Final = Record(
    model.Replicas,
    (
        Field("ready", WHOLE, ("readyReplicas",), shown=True),
        Field("available", WHOLE, ("availableReplicas",), shown=True),
    ),
)

DEVICE_METRICS: Final = Record(
    model.DeviceMetrics,
    (
        Field("timestamp", MOMENT),
        Field("cpu_milli_percent", WHOLE),
        Field("memory_milli_percent", WHOLE),
        Field("memory_bytes", WHOLE),
    ),
)

PROPLET_STATUS: Final = Record(
    model.PropletStatus,
    (
        Field("phase", choice(model.PropletPhase)),
        Field("last_seen", MOMENT),
        Field("metadata", PROPLET_METADATA),
        Field("extensions", TEXTS),
        Field("encodings", TEXTS),
        Field("conditions", CONDITIONS),
        Field("alive", FLAG, shown=True),
        Field("task_count", WHOLE, shown=True),
        Field("available_resources", RESOURCES),
        Field("replicas", REPLICAS, ("k8sStatus",)),
        Field("latest_metrics", DEVICE_METRICS),
        Field("observed_generation", WHOLE),
    ),
)

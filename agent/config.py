"""The configuration of a node: layers of defaults, files and ``PROPLET_*`` variables, read into checked, frozen tables.

From weakest to strongest: defaults of the program, defaults of this machine, the configuration file, ``conf.d/*.toml``
beside it, the environment, flags. Without a file, an MQTT address (a flag or a variable) or credentials make an agent
only; with nothing at all the node is agent, broker and manager on loopback.
"""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from proplet.agent.config_check import check
from proplet.agent.config_env import CREDENTIALS, leaf, read_environment
from proplet.agent.config_files import (
    FileProblem,
    credentials_layer,
    drop_ins,
    given_in,
    is_credentials_file,
    layer_of,
    read_toml,
)
from proplet.agent.config_reader import Given, Problem, Reading, Tree, overlay
from proplet.agent.config_schema import MIB, AgentTable, CeilingsTable, NodeSettings, Source
from proplet.agent.config_secrets import secrets_layer
from proplet.agent.systemd import DirectoryError, directories

DEFAULT = "default"
THIS_MACHINE = "this machine"

#: Flags whose names are not the last part of their setting: the reference's words.
FLAGS: Mapping[str, str] = {
    "mqtt.address": "mqtt-address",
    "mqtt.domain": "domain-id",
    "mqtt.channel": "channel-id",
    "mqtt.client_id": "client-id",
    "mqtt.tls.ca_file": "mqtt-ca-file",
    "mqtt.tls.cert_file": "mqtt-cert-file",
    "mqtt.tls.key_file": "mqtt-key-file",
    "kubernetes.namespaces": "namespace",
    "kubernetes.group": "api-group",
    "kubernetes.health_address": "health-probe-bind-address",
    "kubernetes.metrics_address": "metrics-bind-address",
    "kubernetes.metrics_cert_file": "metrics-cert-path",
    "kubernetes.metrics_key_file": "metrics-cert-path",
    "kubernetes.metrics_token_file": "metrics-token-file",
    "kubernetes.metrics_open": "metrics-secure",
    "kubernetes.proplet_service_accounts": "proplet-service-accounts",
    "kubernetes.proplet_secrets": "proplet-secrets",
    "kubernetes.last_seen_interval": "liveliness-interval",
    "kubernetes.lease_duration": "leader-elect-lease-duration",
    "kubernetes.renew_deadline": "leader-elect-renew-deadline",
    "kubernetes.retry_period": "leader-elect-retry-period",
    "manager.liveliness_timeout": "last-seen-threshold",
}

#: sysexits.h, EX_CONFIG: the unit does not restart a node that ends with it.
EXIT_CONFIG = 78


class ConfigError(Exception):
    """The configuration is wrong; `problems` holds everything that is, the text one line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with its story: files read, each value's origin by dotted path, what deserves a warning."""

    settings: NodeSettings
    files: tuple[Path, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def load(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, flags: Mapping[str, str] | None = None
) -> NodeSettings:
    """Return the settings; warnings go to the log.

    Raises:
        ConfigError: with all that is wrong, each problem naming file or variable, setting and remedy.
    """
    loaded = read(path, environ, flags)
    for warning in loaded.warnings:
        logging.getLogger(__name__).warning("%s", warning)
    return loaded.settings


def read(
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, str] | None = None,
    *,
    alone: bool = False,
) -> Loaded:
    """Return the settings with their story; `flags` are texts by dotted path, such as ``{"mqtt.address": "..."}``.

    `alone`: for a command that speaks to no broker, so that none need be named.

    Raises:
        ConfigError: see `load`.
    """
    sources = _Sources(environ)
    sources.read_files(path)
    sources.read_variables(flags or {})
    tree = sources.tree()
    reading = Reading(problems=sources.problems)
    settings = reading.table(NodeSettings, tree)
    assert isinstance(settings, NodeSettings)
    settings = replace(
        settings,
        agent=replace(settings.agent, ceilings=_ceilings(settings.agent, reading.origins)),
        source=sources.source(reading.origins),
    )
    if not reading.problems:
        found = check(settings, reading.origins)
        reading.problems.extend(problem for problem in found if not (alone and problem.setting == "mqtt.address"))
    if reading.problems:
        raise ConfigError(reading.problems)
    return Loaded(settings, tuple(sources.files), reading.origins, tuple(sources.warnings))


def _ceilings(agent: AgentTable, origins: dict[str, str]) -> CeilingsTable:
    """Return the ceilings: none that nobody gave is below a default limit, or of memory above half of the machine's."""
    limits, ceilings = agent.limits, agent.ceilings
    memory_bytes = ceilings.memory_bytes
    if "agent.ceilings.memory" not in origins:
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        memory_bytes = max(min(memory_bytes, half - half % MIB), limits.memory_bytes)
        origins["agent.ceilings.memory"] = THIS_MACHINE
    given = {name for name in ("output", "stack") if f"agent.ceilings.{name}" in origins}
    return replace(
        ceilings,
        memory_bytes=memory_bytes,
        output_bytes=ceilings.output_bytes if "output" in given else max(ceilings.output_bytes, limits.output_bytes),
        stack_bytes=ceilings.stack_bytes if "stack" in given else max(ceilings.stack_bytes, limits.stack_bytes),
    )


@dataclass(slots=True)
class _Sources:
    """The layers while they are collected."""

    environ: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    configuration: Tree = field(default_factory=dict)
    credentials: Tree = field(default_factory=dict)
    variables: Tree = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    configured: bool = False  # whether a configuration file, not only credentials, was there

    def read_files(self, path: Path | None) -> None:
        named = path or _named(self.environ)
        if named is not None:
            if path is None and not _exists(named) and _has_credentials(self.environ):
                # The reference reads its file only for the sake of credentials; its users' variables name one anyway.
                self.warnings.append(f"PROPLET_CONFIG_FILE: {named} does not exist; not needed for credentials")
            else:
                self._read_file(named)
            return
        try:
            usual = directories(self.environ).config / "proplet.toml"
        except DirectoryError:
            return  # said by `_machine`, which needs the others, too
        for candidate in ([usual] if _exists(usual) else []) + list(drop_ins(usual)):
            self._read_file(candidate)

    def _read_file(self, path: Path) -> None:
        try:
            document, text = read_toml(path)
            layer = layer_of(path, document, text)
            if is_credentials_file(document):
                section = self.environ.get("PROPLET_CONFIG_SECTION") or "proplet"
                self.credentials = overlay(self.credentials, credentials_layer(layer, path, section))
            else:
                self.configured = True
                self.configuration = overlay(self.configuration, layer)
            self.files.append(path)
        except FileProblem as error:
            self.configured = True
            self.problems.append(error.problem)

    def read_variables(self, flags: Mapping[str, str]) -> None:
        found = read_environment(self.environ)
        self.problems.extend(found.problems)
        self.warnings.extend(found.warnings)
        self.switches = found.switches
        self.variables = found.settings
        for setting, text in flags.items():
            flag = FLAGS.get(setting) or setting.rpartition(".")[2].replace("_", "-")
            given = Given(text, f"--{flag}", text=True, base=Path.cwd())
            self.variables = overlay(self.variables, leaf(setting, given))
        if not self.files and not self.problems:
            self._read_beside()

    def _read_beside(self) -> None:
        """Read ``./config.toml`` where the reference would: an address is given and a credential is missing."""
        if given_in(self.variables, "mqtt.address") is None:
            return
        wanted = ("mqtt.domain", "mqtt.channel", "mqtt.client_id", "mqtt.client_key")
        if all(given_in(self.variables, setting) for setting in wanted):
            return
        beside = Path.cwd() / "config.toml"
        try:
            document, text = read_toml(beside)
            if is_credentials_file(document):
                section = self.environ.get("PROPLET_CONFIG_SECTION") or "proplet"
                self.credentials = credentials_layer(layer_of(beside, document, text), beside, section)
                self.files.append(beside)
        except FileProblem:
            return  # not ours to complain about: nobody named it

    def tree(self) -> Tree:
        """Return all layers as one, the parts switched on and off, this machine's values and the secrets included."""
        given = overlay(overlay(self.credentials, self.configuration), self.variables)
        address = given_in(given, "mqtt.address")
        alone = not self.configured and not self.credentials and address is None
        clustered = self.switches.get("kubernetes", isinstance(self.configuration.get("kubernetes"), dict))
        wanted = {"broker": alone, "manager": alone or clustered, "kubernetes": False}
        for name, implied in wanted.items():
            on = self.switches.get(name, implied or isinstance(self.configuration.get(name), dict))
            if on:
                given.setdefault(name, {})
            elif name in self.variables:
                given.pop(name)
                self.warnings.append(f"settings of the {name} are given, but it is off: PROPLET_{name.upper()}=true")
            elif isinstance(given.get(name), dict):
                given.pop(name)
        tree = overlay(self._machine(given), given)
        found = secrets_layer(tree, self.environ)
        self.problems.extend(found.problems)
        self.warnings.extend(found.warnings)
        return overlay(tree, found.settings)

    def source(self, origins: Mapping[str, str]) -> Source:
        """Return where the settings are from."""
        try:
            places = directories(self.environ)
        except DirectoryError:
            return Source(tuple(self.files), origins)
        return Source(tuple(self.files), origins, places.config, places.credentials)

    def _machine(self, given: Tree) -> Tree:
        """Return the defaults that depend on the machine and on what was given."""
        try:
            places = directories(self.environ)
        except DirectoryError as error:
            self.problems.append(Problem("", "node.state_dir", str(error)))
            return {}
        own_broker = isinstance(given.get("broker"), dict)
        client_id = given_in(given, "mqtt.client_id") or given_in(given, "node.id")
        identity = client_id or Given(_machine_name(), THIS_MACHINE)
        state = given_in(given, "node.state_dir")
        runtime = given_in(given, "node.runtime_dir")
        state_dir = str(state.raw) if state else str(places.state)
        runtime_dir = str(runtime.raw) if runtime else str(places.runtime)
        machine: Tree = {
            "node": {
                "id": identity,
                "state_dir": Given(str(places.state), THIS_MACHINE),
                "cache_dir": Given(str(places.cache), THIS_MACHINE),
                "runtime_dir": Given(str(places.runtime), THIS_MACHINE),
                "manifests_dir": Given(str(places.config / "manifests.d"), THIS_MACHINE),
            },
            "mqtt": {"client_id": identity},
        }
        if self.credentials and not self.configured:
            # The reference's own default: its file holds credentials only.
            machine["mqtt"] |= {"address": Given("tcp://localhost:1883", DEFAULT)}
        elif own_broker:
            machine["mqtt"] |= {"domain": Given("local", DEFAULT), "channel": Given("main", DEFAULT)}
        if isinstance(given.get("manager"), dict):
            machine["manager"] = {
                "store": _beside(state, state_dir, "manager.db"),
                "socket": _beside(runtime, runtime_dir, "proplet.sock"),
            }
        return machine


def _beside(given: Given | None, directory: str, name: str) -> Given:
    return Given(str(Path(directory) / name), THIS_MACHINE, base=given.base if given else Path())


def _named(environ: Mapping[str, str]) -> Path | None:
    text = environ.get("PROPLET_CONFIG_FILE", "")
    return Path(text) if text and "\0" not in text else None


def _has_credentials(environ: Mapping[str, str]) -> bool:
    given = {path for key, path in CREDENTIALS.items() if environ.get(f"PROPLET_{key.upper()}")}
    return given == set(CREDENTIALS.values())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # reading it will say why it cannot be read


def _machine_name() -> str:
    """Return the host's name and eight characters from its machine id: the same at every start, unique to a device."""
    import hashlib
    import hmac

    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname().partition(".")[0]) or "proplet"
    try:
        machine_id = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        machine_id = b""
    if not machine_id:
        return name
    # machine-id(5): it is confidential and must not be sent as it is, only hashed with a key of the application.
    return f"{name}-{hmac.new(machine_id, b'proplet', hashlib.sha256).hexdigest()[:8]}"

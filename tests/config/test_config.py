"""The configuration as a whole: which parts are on, which layer wins, what is refused and how it is said."""

import logging
import os
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from proplet.agent.config import ConfigError, load, read
from proplet.agent.config_schema import BrokerEngine, LogLevel
from proplet.agent.config_show import show
from proplet.agent.parts import shell_settings


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # pytest's own directories may be too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="p-") as directory:
        monkeypatch.chdir(directory)
        yield Path(directory)


def environ(home: Path, **more: str) -> Mapping[str, str]:
    return {"HOME": str(home), **more}


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)
    return path


def problems(path: Path | None, env: Mapping[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, env)
    return str(caught.value)


def test_with_nothing_at_all_the_node_is_agent_broker_and_manager_on_loopback(home: Path) -> None:
    settings = load(None, environ(home))
    assert settings.broker is not None
    assert settings.broker.host == "127.0.0.1"
    assert settings.manager is not None
    assert settings.manager.api.host is None
    assert settings.mqtt.address is None
    assert (settings.mqtt.domain, settings.mqtt.channel) == ("local", "main")
    assert settings.node.state_dir == home / ".local/state/proplet"
    assert settings.manager.store == home / ".local/state/proplet/manager.db"


def test_an_address_without_a_file_makes_an_agent_only(home: Path) -> None:
    env = environ(
        home, PROPLET_MQTT_ADDRESS="tcp://broker:1883", PROPLET_DOMAIN_ID="d", PROPLET_CHANNEL_ID="c",
        PROPLET_CLIENT_ID="pi", PROPLET_CLIENT_KEY="k",
    )  # fmt: skip
    settings = load(None, env)
    assert (settings.broker, settings.manager) == (None, None)
    assert (settings.node.id, settings.mqtt.client_id) == ("pi", "pi")
    assert settings.mqtt.client_key is not None
    assert settings.mqtt.client_key.reveal() == "k"


def test_a_file_switches_on_only_what_it_has_tables_for(home: Path) -> None:
    path = write(home / "p.toml", "[mqtt]\naddress = 'tcp://b'\ndomain = 'd'\nchannel = 'c'\n[manager]\n")
    settings = load(path, environ(home))
    assert settings.broker is None
    assert settings.manager is not None


def test_a_file_without_a_broker_of_either_kind_is_refused(home: Path) -> None:
    path = write(home / "p.toml", "[manager]\n")
    assert "mqtt.address: is missing: name a broker" in problems(path, environ(home))


def test_parts_can_be_switched_by_variables(home: Path) -> None:
    path = write(home / "p.toml", "[broker]\nport = 0\n[manager]\n")
    settings = load(path, environ(home, PROPLET_MANAGER="no", PROPLET_BROKER_ENGINE="amqtt"))
    assert settings.manager is None
    assert settings.broker is not None
    assert settings.broker.engine is BrokerEngine.AMQTT


def test_variables_go_before_files_and_drop_ins_before_the_main_file(home: Path) -> None:
    usual = home / ".config/proplet"
    write(usual / "proplet.toml", '[node]\nlog_level = "debug"\nlocation = "a"\ntags = ["x"]\n[broker]\n')
    write(usual / "conf.d/10-site.toml", '[node]\nlocation = "b"\ntags = ["y"]\n')
    loaded = read(None, environ(home, PROPLET_TAGS="u, v"))
    assert loaded.settings.node.log_level is LogLevel.DEBUG
    assert loaded.settings.node.location == "b"
    assert loaded.settings.node.tags == ("u", "v")
    assert loaded.origins["node.tags"] == "PROPLET_TAGS"
    assert loaded.origins["node.location"] == f"{usual}/conf.d/10-site.toml:2"
    assert loaded.origins["node.state_dir"] == "this machine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[agnet]\nmax_running = 1\n", ":2: unknown table `agnet` at the top level; did you mean `agent`?"),
        ("[agent]\nmax_runing = 1\n", ":2: unknown key `max_runing` in [agent]; did you mean `max_running`?"),
        (
            '[broker]\n[registries."https://x.example"]\ninsecure = true\n',
            "must be named as in images: host or host:port, without a scheme or a path",
        ),
        (
            '[broker]\n[registries."docker.io"]\nmirrors = ["http://cache.example:5000"]\n',
            ':3: registries."docker.io".mirrors: "http://cache.example:5000" must be host, host:port or',
        ),
        ('[broker]\n[registries."docker.io"]\nmirrors = [""]\n', '.mirrors: "" must be host'),
        ('[agent]\nmax_running = "many"\n', ':2: agent.max_running: expected a whole number, not "many"'),
        ("[agent]\nmax_running = true\n", ":2: agent.max_running: expected a whole number, not true"),
        ("[agent]\nmax_running = 0\n", ":2: agent.max_running: must be at least 1"),
        ("[mqtt]\nqos = 3\n", ":2: mqtt.qos: must be at most 2"),
        ("[mqtt]\nkeep_alive = '5 parsecs'\n", ':2: mqtt.keep_alive: expected a duration such as "10s"'),
        ("[agent.limits]\nmemory = '64 potatoes'\n", ':2: agent.limits.memory: expected a size such as "64Mi"'),
        ("[node]\nlog_level = 'loud'\n", ':2: node.log_level: expected "debug", "info", "warn" or "error", not "loud"'),
        ("[node]\ntags = 'a'\n", ":2: node.tags: expected a list of texts"),
        ("broker = 1\n", ":1: broker: expected a table, not 1"),
        ("[node]\nid = {a = 1}\n", "node.id: expected text in quotes, not a table"),
        ("[node]\nid = 'a/b'\n", ":2: node.id: must be a part of MQTT topics"),
        ("[mqtt]\naddress = 'http://x'\n", "mqtt.address: MQTT address 'http://x': unknown scheme"),
        ("[broker]\nhost = '0.0.0.0'\n", ":2: broker.host: 0.0.0.0 is not loopback: give tls_cert_file"),
        ("[broker]\n[manager.api]\nhost = '192.168.1.1'\n", ":3: manager.api.host: 192.168.1.1 is not loopback"),
        (
            "[broker]\n[manager.api]\nhost = '127.0.0.1'\n",
            ":3: manager.api.host: a listener on TCP needs manager.api",
        ),
        ("[manager.api]\nhost = '::1'\ntoken = 'short'\n", ":3: manager.api.token: must have at least 16 ASCII chara"),
        ("[manager.api]\nhost = '::1'\ntoken = 'with a space in it'\n", ":3: manager.api.token: must have at least 16"),
        ("[broker]\nproplets = ['pi-2', 'a/b']\n", ':2: broker.proplets: "a/b" must be a part of MQTT topics'),
        ("[broker]\n[agent.ceilings]\nmemory = '32Mi'\n", ":3: agent.ceilings.memory: is below agent.limits.memory"),
        ("[broker]\n[registries.'r:5000']\nusername = 'me'\n", "username and password (or password_file) belong toge"),
        ("[mqtt]\nqos = \n", ":2: is not valid TOML"),
    ],
)
def test_a_mistake_names_file_line_setting_and_remedy(home: Path, text: str, message: str) -> None:
    path = write(home / "p.toml", text)
    assert message in problems(path, environ(home))
    assert str(path) in problems(path, environ(home))


def test_all_mistakes_are_told_at_once(home: Path) -> None:
    path = write(home / "p.toml", "a = 1\n[agent]\nmax_running = 0\nx = 2\n[mqtt]\nqos = 9\n")
    with pytest.raises(ConfigError) as caught:
        load(path, environ(home, PROPLET_METRICS_INTERVAL="soon"))
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("text", ["", "\xff\xfe", "[a]\n" * 2, "x = " + "[" * 5000, "x = " + "9" * 5000, "\0"])
def test_what_is_no_configuration_is_told_in_a_line(home: Path, text: str) -> None:
    path = home / "p.toml"
    path.write_bytes(text.encode("latin-1"))
    said = problems(path, environ(home))
    assert said.splitlines()


def test_a_missing_file_that_was_named_is_a_problem(home: Path) -> None:
    assert "cannot be read: No such file or directory" in problems(home / "none.toml", environ(home))
    assert "none.toml" in problems(None, environ(home, PROPLET_CONFIG_FILE=str(home / "none.toml")))


def test_durations_sizes_and_no_limit_are_understood(home: Path) -> None:
    path = write(
        home / "p.toml",
        """
        [broker]
        [agent]
        liveliness_interval = "1m30s"
        metrics_interval = 5
        [agent.limits]
        memory = "1.5Mi"
        cpu = "none"
        wall = 0.25
        output = 1000
        """,
    )
    agent = load(path, environ(home)).agent
    assert (agent.liveliness_interval_s, agent.metrics_interval_s) == (90.0, 5.0)
    assert (agent.limits.memory_bytes, agent.limits.output_bytes) == (1536 * 1024, 1000)
    assert (agent.limits.cpu_s, agent.limits.wall_s) == (None, 0.25)


def test_the_references_variables_of_both_eras_are_accepted(home: Path) -> None:
    common = {
        "PROPLET_MQTT_ADDRESS": "mqtts://b:8883",
        "PROPLET_CHANNEL_ID": "c",
        "PROPLET_MQTT_QOS": "2",
        "PROPLET_MQTT_KEEP_ALIVE": "45",
        "PROPLET_LIVELINESS_INTERVAL": "10s",
        "PROPLET_METRICS_INTERVAL": "20",
        "PROPLET_MANAGER_K8S_NAMESPACE": "edge",
        "PROPLET_LOG_LEVEL": "WARN",
        "PROPLET_ENABLE_MONITORING": "off",
    }
    old = load(None, environ(home, PROPLET_DOMAIN_ID="d", PROPLET_CLIENT_ID="p", PROPLET_CLIENT_KEY="k", **common))
    new = load(None, environ(home, PROPLET_TENANT_ID="d", PROPLET_ENTITY_ID="p", PROPLET_API_KEY="k", **common))
    assert old == new
    assert (old.mqtt.domain, old.mqtt.channel, old.mqtt.qos, old.mqtt.keep_alive_s) == ("d", "c", 2, 45.0)
    assert (old.agent.liveliness_interval_s, old.agent.metrics_interval_s) == (10.0, 20.0)
    assert (old.node.namespace, old.node.log_level, old.agent.enable_monitoring) == ("edge", LogLevel.WARN, False)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({}, None),
        ({"PROPLET_METRICS_ENABLED": "true"}, ":9092"),
        ({"PROPLET_METRICS_PORT": "9100"}, ":9100"),
        ({"PROPLET_METRICS_ENABLED": "false", "PROPLET_METRICS_PORT": "9100"}, "0"),
        ({"PROPLET_METRICS_PORT": "9100", "PROPLET_AGENT_METRICS_ADDRESS": "127.0.0.1:9"}, "127.0.0.1:9"),
    ],
)
def test_the_references_metrics_are_served_where_its_variables_say_so(
    home: Path, given: dict[str, str], address: str | None
) -> None:
    assert load(None, environ(home, **given)).agent.metrics_address == address


def test_metrics_that_cannot_be_served_as_asked_are_refused(home: Path) -> None:
    wrong = problems(None, environ(home, PROPLET_METRICS_PORT="http"))
    assert 'PROPLET_METRICS_PORT: agent.metrics_address: ":http" is no address' in wrong
    assert "PROPLET_METRICS_ENABLED" in problems(None, environ(home, PROPLET_METRICS_ENABLED="perhaps"))


def test_two_names_for_one_credential_must_agree(home: Path) -> None:
    env = environ(home, PROPLET_DOMAIN_ID="a", PROPLET_TENANT_ID="b")
    assert "PROPLET_DOMAIN_ID and PROPLET_TENANT_ID: mqtt.domain: they differ" in problems(None, env)


def test_unknown_variables_and_those_without_effect_only_warn(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    env = environ(home, PROPLET_HAL_ENABLED="true", PROPLET_OTEL_URL="http://x", PROPLET_TAG="a", PROPLET_LOCATION="")
    with caplog.at_level(logging.WARNING):
        load(None, env)
    assert "without effect here: PROPLET_HAL_ENABLED, PROPLET_OTEL_URL" in caplog.text
    assert "unknown variable PROPLET_TAG, ignored; did you mean `PROPLET_TAGS`?" in caplog.text


def test_every_setting_has_a_variable_of_its_own(home: Path) -> None:
    from proplet.agent.config_env import OTHER, REFERENCE, SWITCHES, WITHOUT_EFFECT, setting_paths, variable_of

    paths = list(setting_paths())
    ours = {variable_of(path): path for path in paths}
    assert len(ours) == len(paths)
    assert not set(ours) & (set(OTHER) | set(SWITCHES) | set(WITHOUT_EFFECT))
    assert all(REFERENCE[name] == ours[name] for name in set(ours) & set(REFERENCE))
    settings = load(None, environ(home, PROPLET_REGISTRIES="{'r:5000' = {plain_http = true}}"))
    assert settings.registries["r:5000"].plain_http is True


CREDENTIALS = """
    [manager]
    {domain} = "d"
    {client} = "m"
    {key} = "mk"
    channel_id = "c"
    [proplet1]
    {domain} = "d"
    {client} = "p1"
    {key} = "pk"
    channel_id = "c"
    """
OLD = CREDENTIALS.format(domain="domain_id", client="client_id", key="client_key")
NEW = CREDENTIALS.format(domain="tenant_id", client="entity_id", key="api_key")


@pytest.mark.parametrize("text", [OLD, NEW])
def test_the_references_file_gives_credentials_and_switches_nothing_on(home: Path, text: str) -> None:
    path = write(home / "config.toml", text)
    env = environ(home, PROPLET_CONFIG_FILE=str(path), PROPLET_CONFIG_SECTION="proplet1")
    settings = load(None, env)
    assert (settings.broker, settings.manager) == (None, None)
    assert settings.mqtt.address == "tcp://localhost:1883"
    assert (settings.mqtt.domain, settings.mqtt.channel, settings.node.id) == ("d", "c", "p1")
    assert settings.mqtt.client_key is not None
    assert settings.mqtt.client_key.reveal() == "pk"


def test_a_missing_section_names_the_nearest(home: Path) -> None:
    path = write(home / "config.toml", NEW)
    assert "has no [proplet]; did you mean `proplet1`?" in problems(path, environ(home))


def test_the_references_file_beside_is_read_when_an_address_is_given(home: Path) -> None:
    write(home / "config.toml", OLD.replace("proplet1", "proplet"))
    settings = load(None, environ(home, PROPLET_MQTT_ADDRESS="tcp://b:1883"))
    assert (settings.node.id, settings.mqtt.address) == ("p1", "tcp://b:1883")
    assert load(None, environ(home)).broker is not None


def test_secrets_come_from_files_and_credentials(home: Path) -> None:
    key = write(home / "key", "s3cret\n")
    path = write(home / "p.toml", f'[broker]\n[mqtt]\nclient_key_file = "{key.name}"\n[manager]\n')
    write(home / "credentials/manager-api-token", "t0ken")
    loaded = read(path, environ(home, CREDENTIALS_DIRECTORY=str(home / "credentials")))
    assert loaded.warnings == ()
    assert loaded.settings.mqtt.client_key is not None
    assert loaded.settings.mqtt.client_key.reveal() == "s3cret"
    assert loaded.settings.manager is not None
    assert loaded.settings.manager.api.token is not None
    assert loaded.settings.manager.api.token.reveal() == "t0ken"
    assert "s3cret" not in repr(loaded)
    assert "t0ken" not in str(loaded)


def test_a_secret_others_can_read_gets_a_warning(home: Path) -> None:
    key = write(home / "key", "s3cret", 0o644)
    path = write(home / "p.toml", f'[broker]\n[mqtt]\nclient_key_file = "{key}"\n')
    assert read(path, environ(home)).warnings == (f"{key} holds a secret and its mode is 0644: chmod 600 {key}",)
    literal = write(home / "l.toml", '[broker]\n[mqtt]\nclient_key = "s3cret"\n', 0o644)
    assert f"chmod 600 {literal}" in read(literal, environ(home)).warnings[0]


def test_a_key_given_as_a_flag_works_and_warns(home: Path) -> None:
    loaded = read(None, environ(home), {"mqtt.client_key": "s3cret"})
    assert loaded.warnings == (
        "--client-key shows the secret to everybody on this machine (ps): use --client-key-file FILE",
    )


def test_a_secret_given_twice_in_files_is_refused(home: Path) -> None:
    path = write(home / "p.toml", '[broker]\n[mqtt]\nclient_key = "a"\nclient_key_file = "key"\n')
    assert "keep the file only" in problems(path, environ(home))


def test_a_variable_replaces_a_secret_file(home: Path) -> None:
    path = write(home / "p.toml", '[broker]\n[mqtt]\nclient_key_file = "not-there"\n')
    key = load(path, environ(home, PROPLET_CLIENT_KEY="b")).mqtt.client_key
    assert key is not None
    assert key.reveal() == "b"


def test_a_secret_file_that_cannot_be_read_is_a_problem_that_names_it(home: Path) -> None:
    path = write(home / "p.toml", '[broker]\n[mqtt]\nclient_key_file = "not-there"\n')
    said = problems(path, environ(home))
    assert f"{path}:3: mqtt.client_key: {home}/not-there: the secret cannot be read" in said


def test_a_secret_file_in_the_home_of_nobody_is_a_problem(home: Path) -> None:
    env = environ(home, PROPLET_MQTT_CLIENT_KEY_FILE="~nobody-here/key")
    assert "PROPLET_MQTT_CLIENT_KEY_FILE: mqtt.client_key: " in problems(None, env)


def test_systemds_directories_are_used(home: Path) -> None:
    env = {"STATE_DIRECTORY": "/var/lib/proplet", "CACHE_DIRECTORY": "/var/cache/proplet",
           "RUNTIME_DIRECTORY": "/run/proplet", "CONFIGURATION_DIRECTORY": str(home)}  # fmt: skip
    settings = load(None, env)
    assert settings.manager is not None
    assert str(settings.manager.store) == "/var/lib/proplet/manager.db"
    assert str(settings.manager.socket) == "/run/proplet/proplet.sock"


def test_a_socket_path_no_kernel_takes_is_refused(home: Path) -> None:
    said = problems(None, environ(home, PROPLET_NODE_RUNTIME_DIR="/" + "x" * 120))
    assert "manager.socket: a Unix socket's path has at most 107 bytes" in said


def test_the_configuration_shown_is_one_that_gives_the_same_settings(home: Path) -> None:
    text = "[mqtt]\nkeep_alive = 7.5\n[broker]\n[manager]\n[agent.limits]\ncpu = 'none'\n[registries.'r:1']\n"
    first = read(write(home / "p.toml", text + "insecure = true\n"), environ(home))
    shown = write(home / "shown.toml", "\n".join(show(first.settings, first.origins)))
    second = read(shown, environ(home))
    assert second.settings == first.settings
    assert second.origins["agent.limits.cpu"].startswith(f"{shown}:")


def test_the_ceilings_shown_are_those_in_force(home: Path) -> None:
    loaded = read(write(home / "p.toml", "[broker]\n"), environ(home))
    shown = "\n".join(show(loaded.settings, loaded.origins)).partition("[agent.ceilings]")[2]
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    assert 'output = "8Mi"' in shown
    assert 'stack = "1Mi"' in shown
    memory = loaded.settings.agent.ceilings.memory_bytes
    assert memory == min(1024, half // 1024**2) * 1024**2
    assert loaded.origins["agent.ceilings.memory"] == "this machine"
    assert "# memory is not set" not in shown
    limits = shell_settings(loaded.settings).limits
    assert (limits.ceiling.memory_bytes, limits.ceiling.output_bytes) == (memory, 8 * 1024**2)


def test_a_default_limit_above_what_no_ceiling_forbids_raises_it(home: Path) -> None:
    text = "[broker]\n[agent.limits]\nmemory = '4096Gi'\noutput = '9Mi'\nstack = '2Mi'\n"
    ceilings = load(write(home / "p.toml", text), environ(home)).agent.ceilings
    assert (ceilings.memory_bytes, ceilings.output_bytes, ceilings.stack_bytes) == (2**42, 9 * 2**20, 2 * 2**20)


def test_secrets_are_never_shown(home: Path) -> None:
    loaded = read(None, environ(home, PROPLET_CLIENT_KEY="s3cret"))
    shown = "\n".join(show(loaded.settings, loaded.origins))
    assert "s3cret" not in shown
    assert 'client_key = "<redacted>"' in shown


def test_a_file_that_is_not_there_is_not_missed_when_the_variables_say_it_all(home: Path) -> None:
    env = environ(
        home, PROPLET_CONFIG_FILE="config.toml", PROPLET_TENANT_ID="d", PROPLET_CHANNEL_ID="c", PROPLET_ENTITY_ID="p",
        PROPLET_API_KEY="k", PROPLET_MQTT_ADDRESS="tcp://b",
    )  # fmt: skip
    loaded = read(None, env)
    assert loaded.settings.node.id == "p"
    assert loaded.warnings == ("PROPLET_CONFIG_FILE: config.toml does not exist; not needed for credentials",)
    assert "cannot be read" in problems(None, {**env, "PROPLET_API_KEY": ""})


@pytest.mark.parametrize(("word", "level"), [("TRACE", LogLevel.DEBUG), ("warning", LogLevel.WARN)])
def test_other_programs_levels_are_understood(home: Path, word: str, level: LogLevel) -> None:
    assert load(None, environ(home, PROPLET_LOG_LEVEL=word)).node.log_level is level


def test_a_password_in_the_address_is_refused_without_showing_it(home: Path) -> None:
    said = problems(None, environ(home, PROPLET_MQTT_ADDRESS="tcp://me:s3cret@broker:1883"))
    assert "mqtt.address: must not hold a user and a password" in said
    assert "s3cret" not in said


def test_a_secret_of_the_wrong_type_is_refused_without_showing_it(home: Path) -> None:
    said = problems(write(home / "p.toml", "[broker]\n[mqtt]\nclient_key = 123456\n"), environ(home))
    assert "mqtt.client_key: expected text in quotes" in said
    assert "123456" not in said

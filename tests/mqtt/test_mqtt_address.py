"""Addresses and settings of a broker."""

import subprocess
import sys
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.mqtt import Address, AddressError, MqttSettings, parse_address

DEFAULTS = {"tcp": 1883, "mqtt": 1883, "ssl": 8883, "tls": 8883, "mqtts": 8883, "ws": 80, "wss": 443}
TLS = {"ssl", "tls", "mqtts", "wss"}
HOSTS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
V6 = st.integers(min_value=0, max_value=2**128 - 1).map(lambda number: str(IPv6Address(number)))
PATHS = st.from_regex(r"[a-z0-9_~-]{1,8}(/[a-z0-9?=&]{0,5}){0,2}", fullmatch=True)


@given(st.sampled_from(sorted(DEFAULTS)), st.one_of(HOSTS, V6), st.none() | st.integers(1, 65535), st.none() | PATHS)
def test_every_well_formed_address_is_understood(scheme: str, host: str, port: int | None, path: str | None) -> None:
    websocket = scheme in {"ws", "wss"}
    written = f"[{host}]" if ":" in host else host
    text = f"{scheme}://{written}" + (f":{port}" if port else "")
    if websocket and path:
        text += f"/{path}"
    expected_path = "" if not websocket else f"/{path}" if path else "/mqtt"
    assert parse_address(text) == Address(host, port or DEFAULTS[scheme], scheme in TLS, websocket, expected_path)
    assert parse_address(text.replace(scheme, scheme.upper(), 1)).port == (port or DEFAULTS[scheme])


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("broker", "broker", 1883),
        ("broker:1884", "broker", 1884),
        ("[fe80::1]:1884", "fe80::1", 1884),
        ("::1", "::1", 1883),
        (" 10.0.0.1 ", "10.0.0.1", 1883),
        ("tcp://broker/", "broker", 1883),
    ],
)
def test_an_address_needs_no_scheme(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp://",
        ":1883",
        "http://broker",
        "broker:0",
        "broker:65536",
        "broker:x",
        "broker:",
        "broker:1883:1",
        "tcp://[::1",
        "[nonsense]:1883",
        "[::1]1883",
        "tcp://user:secret@broker",
        "tcp://broker/path",
        "bro ker",
        "tcp://broker?x=1",
        "broker:\u0661\u0662",
    ],
)
def test_what_is_no_address_is_refused_and_named(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        MqttSettings(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert address.host
    assert 0 < address.port < 65536


@pytest.mark.parametrize(
    "wrong",
    [
        {"keepalive_s": 0},
        {"keepalive_s": 65536},
        {"max_inflight": 0},
        {"max_packet_bytes": 10},
        {"backoff_max_s": 0},
        {"backoff_max_s": float("nan")},
        {"key_file": "key.pem"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        MqttSettings(**wrong)  # type: ignore[arg-type]


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(MqttSettings(password="secret"))


def test_importing_the_adapter_does_not_import_the_library() -> None:
    code = "import sys, proplet.agent.mqtt; print(sorted({'aiomqtt', 'paho', 'ssl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "aiomqtt" not in done.stdout
    assert "paho" not in done.stdout

"""Which addresses a pull connects to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.addresses import is_forbidden, is_loopback
from proplet.oci.errors import AddressRefused
from proplet.oci.transport import AddressGuard


@given(st.ip_addresses(v=4, network="169.254.0.0/16") | st.ip_addresses(v=6, network="fe80::/10"))
def test_every_link_local_address_is_forbidden_to_everybody(address: object) -> None:
    assert is_forbidden(str(address))
    for registry in ("ghcr.io", "127.0.0.1", str(address)):
        with pytest.raises(AddressRefused, match="link-local or metadata"):
            AddressGuard(registry).admit("some.name", str(address))


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fe80::1%eth0",
     "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"],
)  # fmt: skip
def test_metadata_addresses_are_forbidden_in_every_notation(address: str) -> None:
    assert is_forbidden(address)


@given(st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_loopback_is_for_a_registry_that_is_there(address: object) -> None:
    here = str(address)
    assert is_loopback(here)
    AddressGuard(here).admit(here, here)
    AddressGuard("localhost").admit("storage.local", here)
    AddressGuard("registry.lan").admit("registry.lan", here)  # its own name may stand for this device
    with pytest.raises(AddressRefused, match="on this device itself"):
        AddressGuard("registry.lan").admit("localhost", here)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_loopback_has_many_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["ghcr.io", "localhost.example", "10.0.0.1", "192.168.1.2", "8.8.8.8", "fd00::1", "x"])
def test_the_lan_and_the_internet_are_ordinary(host: str) -> None:
    assert not is_loopback(host)
    assert not is_forbidden(host)
    AddressGuard("ghcr.io").admit(host, host)


def test_every_address_of_a_name_is_looked_at() -> None:
    with pytest.raises(AddressRefused):
        AddressGuard("ghcr.io").admit_host("localhost", 80)
    AddressGuard("localhost").admit_host("localhost", 80)
    AddressGuard("ghcr.io").admit_host("does.not.exist.invalid", 80)  # left to the connection to report

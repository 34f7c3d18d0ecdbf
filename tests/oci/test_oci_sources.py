"""Mirrors before the registry: who is asked, in which order, and what is said of those that were passed over."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    ManifestUnknown,
    PullCancelled,
    PullTimeout,
    RegistryUnreachable,
)
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor
from proplet.oci.reference import Reference
from proplet.oci.settings import HostSettings, RegistrySettings
from proplet.oci.sources import Sources, open_sources
from tests.oci.faulty_registry import (
    FaultyRegistry,
    dripping,
    faulty_registry,
    hanging,
    ok,
    other,
    status,
    truncated,
)
from tests.support.registry import ADDITION, free_port, running_registry

MODULE = Descriptor("application/wasm", Digest.of(ADDITION), len(ADDITION))


@pytest.fixture
def three() -> Iterator[list[FaultyRegistry]]:
    """Two mirrors and the registry itself."""
    with ExitStack() as stack:
        yield [stack.enter_context(faulty_registry()) for _ in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def opened(
    mirrors: list[str],
    registry: FaultyRegistry,
    cancelled: Callable[[], bool] = lambda: False,
    hosts: dict[str, HostSettings] | None = None,
    **limits: float,
) -> Sources:
    found = {registry.address: HostSettings(mirrors=tuple(mirrors)), **(hosts or {})}
    chosen = {"connect_timeout_s": 2.0, "read_timeout_s": 5.0, "total_timeout_s": 20.0, **limits}
    settings = RegistrySettings(hosts=found, use_docker_config=False, first_retry_wait_s=0.01, **chosen)  # type: ignore[arg-type]
    return open_sources(Reference.parse(registry.reference), settings, cancelled)


def asked(registries: list[FaultyRegistry]) -> list[int]:
    return [len(one.seen) for one in registries]


def test_without_mirrors_the_registry_is_asked(three: list[FaultyRegistry], store: OciLayout) -> None:
    with opened([], three[2]) as sources:
        assert str(sources.manifest().digest) == three[2].manifest_digest
        sources.copy_blob(MODULE, store, "the module")
    assert store.verify(MODULE.digest) == MODULE.size
    assert all("ns=" not in one.path for one in three[2].seen)


def test_the_first_mirror_that_has_it_is_enough(three: list[FaultyRegistry], store: OciLayout) -> None:
    first, second, registry = three
    with opened([first.address, second.address], registry) as sources:
        sources.manifest()
        sources.copy_blob(MODULE, store, "the module")
        assert sources.warnings == []
    assert asked(three) == [2, 0, 0]
    assert first.seen[0].path == f"/v2/demo/add/manifests/v1?ns={registry.address}"


@pytest.mark.parametrize("prefix", ["/hub", "/hub/", "/a/b"])
def test_a_mirror_may_keep_its_images_below_a_prefix(three: list[FaultyRegistry], prefix: str) -> None:
    first, _, registry = three
    with opened([first.address + prefix], registry) as sources:
        sources.manifest()
    assert first.seen[0].path.startswith(f"/v2{prefix.rstrip('/')}/demo/add/manifests/v1")


def test_docker_hub_has_mirrors_too(three: list[FaultyRegistry]) -> None:
    hosts = {"docker.io": HostSettings(mirrors=(f"{three[0].address}/hub",))}
    with open_sources(Reference.parse("redis:7"), RegistrySettings(hosts=hosts, use_docker_config=False)) as sources:
        sources.manifest()
    assert three[0].seen[0].path == "/v2/hub/library/redis/manifests/7?ns=docker.io"


def test_a_mirror_that_is_down_is_passed_over_once_and_for_all(
    three: list[FaultyRegistry], store: OciLayout, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with caplog.at_level(logging.WARNING), opened([nobody, three[1].address], three[2]) as sources:
        sources.manifest()
        sources.copy_blob(MODULE, store, "the module")
        assert len(sources.warnings) == 1
    assert [nobody in one.message and "refused" in one.message for one in caplog.records] == [True]
    assert asked(three) == [0, 2, 0]


def test_what_one_mirror_does_not_have_the_next_one_may_have(three: list[FaultyRegistry], store: OciLayout) -> None:
    first, second, registry = three
    first.script("manifests", status(404))
    second.script("blobs", status(404))
    with opened([first.address, second.address], registry) as sources:
        sources.manifest()
        sources.copy_blob(MODULE, store, "the module")
    assert [len(one.requests("manifests")) for one in three] == [1, 1, 0]
    assert [len(one.requests("blobs")) for one in three] == [1, 0, 0]


def test_a_mirror_with_other_bytes_is_passed_over(three: list[FaultyRegistry], store: OciLayout) -> None:
    first, second, registry = three
    first.script("blobs", other(ADDITION[:-1] + b"x"))
    second.script("blobs", other(ADDITION + b"x"))
    with opened([first.address, second.address], registry) as sources:
        sources.copy_blob(MODULE, store, "the module")
        assert ["digest" in one or "announced" in one for one in sources.warnings] == [True, True]
    assert store.verify(MODULE.digest) == MODULE.size


def test_a_wrong_beginning_of_a_mirror_does_not_spoil_what_the_registry_sends(
    three: list[FaultyRegistry], store: OciLayout
) -> None:
    first, _, registry = three
    first.module = b"x" * len(ADDITION)
    first.script("blobs", truncated(20))
    rest = other(ADDITION[20:])
    place = f"bytes 20-{len(ADDITION) - 1}/{len(ADDITION)}"
    rest.deliver = lambda handler, body, kind: handler.reply(206, body[20:], kind, Content_Range=place)
    registry.script("blobs", rest, ok())
    with opened([first.address], registry) as sources:
        sources.copy_blob(MODULE, store, "the module")
    assert [one.headers.get("Range") for one in registry.requests("blobs")] == ["bytes=20-", None]
    assert store.verify(MODULE.digest) == MODULE.size


def test_a_mirror_has_credentials_of_its_own_and_gets_no_others(three: list[FaultyRegistry]) -> None:
    first, _, registry = three
    first.script("manifests", status(401, WWW_Authenticate='Basic realm="x"'))
    registry.script("manifests", status(401, WWW_Authenticate='Basic realm="x"'), ok())
    registry_login = HostSettings(username="user", password="s3cret", mirrors=(first.address,))
    with opened([], registry, hosts={registry.address: registry_login}) as sources:
        sources.manifest()
    assert all("Authorization" not in one.headers for one in first.seen)
    first.script("manifests", status(401, WWW_Authenticate='Basic realm="x"'), ok())
    hosts = {registry.address: registry_login, first.address: HostSettings(username="mirror", password="other")}
    before = len(registry.seen)
    with opened([], registry, hosts=hosts) as sources:
        sources.manifest()
    assert "Authorization" in first.seen[-1].headers
    assert len(registry.seen) == before


def test_the_registrys_own_error_is_the_one_that_is_reported(three: list[FaultyRegistry]) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    three[2].script("manifests", status(404))
    with opened([nobody], three[2]) as sources, pytest.raises(ManifestUnknown) as caught:
        sources.manifest()
    assert str(caught.value).startswith(f"registry {three[2].address}: demo/add has no tag v1")
    assert f"mirror {nobody}: " in str(caught.value)


def test_a_mirror_that_is_slow_costs_no_more_than_its_share(three: list[FaultyRegistry]) -> None:
    three[0].script("manifests", hanging())
    with opened([three[0].address], three[2], read_timeout_s=0.3) as sources:
        sources.manifest()
        assert "time limit" in sources.warnings[0]


def test_the_end_of_the_whole_pull_is_not_a_mirrors_fault(three: list[FaultyRegistry], store: OciLayout) -> None:
    for one in three:
        one.script("blobs", dripping())
    with opened([three[0].address], three[2], total_timeout_s=0.5) as sources, pytest.raises(PullTimeout):
        sources.copy_blob(MODULE, store, "the module")
    assert asked(three) == [1, 0, 0]
    stop = threading.Event()
    with opened([three[0].address], three[2], stop.is_set) as sources, pytest.raises(PullCancelled):
        sources.copy_blob(MODULE, store, "the module", lambda _count: stop.set())
    assert three[2].seen == []


def test_signatures_that_a_mirror_does_not_keep_are_looked_for_at_the_registry(three: list[FaultyRegistry]) -> None:
    first, _, registry = three
    first.script("manifests", status(404))
    first.script("referrers", status(404))
    registry.script("referrers", status(404))
    with opened([first.address], registry) as sources:
        found = sources.find_manifest("sha256-0.sig")
        assert found is not None
        assert str(found.digest) == registry.manifest_digest
        registry.script("manifests", status(404))
        assert sources.find_manifest("sha256-0.sig") is None
        assert sources.referrers(MODULE.digest) == ()


@pytest.mark.parametrize("mirror", ["not a host", "", "/", "host:port/x", "[::1", "169.254.169.254", "h/UPPER"])
def test_a_mirror_that_is_none_is_passed_over(three: list[FaultyRegistry], mirror: str) -> None:
    with opened([mirror], three[2]) as sources:
        sources.manifest()
        assert len(sources.warnings) == 1


def test_nothing_is_left_running(three: list[FaultyRegistry]) -> None:
    with opened([three[0].address], three[2]) as sources:
        sources.manifest()
    assert not [thread for thread in threading.enumerate() if "pull" in thread.name]


@pytest.mark.registry
def test_a_real_registry_serves_as_a_mirror_of_one_that_is_away(tmp_path: Path, store: OciLayout) -> None:
    away = f"127.0.0.1:{free_port()}"
    with running_registry(tmp_path / "mirror") as mirror:
        digest = mirror.push("below/demo/add", "v1", ADDITION)
        hosts = {away: HostSettings(mirrors=(f"{mirror.address}/below",))}
        settings = RegistrySettings(hosts=hosts, use_docker_config=False)
        with open_sources(Reference.parse(f"{away}/demo/add:v1"), settings) as sources:
            assert str(sources.manifest().digest) == digest
            sources.copy_blob(MODULE, store, "the module")
            with pytest.raises(RegistryUnreachable, match="before that, mirror"):
                sources.manifest(Digest.of(b"nothing"))
    assert store.verify(MODULE.digest) == MODULE.size

"""What a registry client asks for, and how it goes on with what broke."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    ConnectionBroken,
    DigestMismatch,
    InvalidManifest,
    PullTimeout,
    RegistryError,
    RegistryUnreachable,
    SizeMismatch,
    Truncated,
)
from proplet.oci.headers import content_range, next_page, retry_after
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from proplet.oci.reference import Reference
from proplet.oci.registry import RegistryClient
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.oci.faulty_registry import (
    Answer,
    FaultyRegistry,
    faulty_registry,
    hanging,
    ok,
    other,
    raw,
    redirect,
    status,
    truncated,
)
from tests.support.registry import ADDITION

QUICK = RegistrySettings(
    use_docker_config=False, connect_timeout_s=2, read_timeout_s=5, total_timeout_s=20, first_retry_wait_s=0.01
)
MODULE = ADDITION + bytes(range(256)) * 1200  # 307 242 bytes
PIECE = 100_000


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with faulty_registry(module=MODULE) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def client(registry: FaultyRegistry, settings: RegistrySettings = QUICK, **how: Any) -> RegistryClient:
    return RegistryClient(Reference.parse(registry.reference), settings, **how)


def descriptor(data: bytes) -> Descriptor:
    return Descriptor("application/wasm", Digest.of(data), len(data))


def fetch(registry: FaultyRegistry, store: OciLayout, settings: RegistrySettings = QUICK, data: bytes = MODULE) -> None:
    with client(registry, settings) as connected:
        connected.copy_blob(descriptor(data), store, "the module")
    assert store.path(Digest.of(data)).read_bytes() == data


def ranges(registry: FaultyRegistry) -> list[str | None]:
    return [one.headers.get("Range") for one in registry.requests("blobs")]


def ranged(keep: int | None = None, **changes: str) -> Answer:
    """What a Range header asks for, cut after ``keep`` bytes of it."""

    def deliver(handler: Any, body: bytes, kind: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        handler.send_response(206 if asked else 200)
        headers = {"Content-Type": kind, "Content-Length": str(len(body) - first)}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        for name, value in {**headers, **{name.replace("_", "-"): text for name, text in changes.items()}}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.put(body[first:] if keep is None else body[first : first + keep])
        handler.close_connection = keep is not None

    return Answer(deliver)


def test_a_transfer_that_breaks_goes_on_where_it_broke(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", ranged(PIECE))
    fetch(registry, store)
    assert ranges(registry) == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]
    assert registry.sent == len(MODULE)


def test_attempts_that_bring_a_transfer_further_are_not_counted(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", ranged(PIECE))
    fetch(registry, store, RegistrySettings(use_docker_config=False, max_attempts=2, first_retry_wait_s=0.01))


def test_a_transfer_that_came_to_a_halt_is_continued(registry: FaultyRegistry, store: OciLayout) -> None:
    def stall(handler: Any, body: bytes, _kind: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.put(body[:PIECE])
        handler.registry.stopping.wait(3)

    registry.script("blobs", Answer(stall), ranged())
    fetch(registry, store, RegistrySettings(use_docker_config=False, read_timeout_s=0.5, first_retry_wait_s=0.01))
    assert ranges(registry) == [None, "bytes=100000-"]


def test_a_registry_that_is_silent_is_not_asked_again(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", hanging())
    with pytest.raises(PullTimeout):
        fetch(registry, store, RegistrySettings(use_docker_config=False, read_timeout_s=0.2))
    assert len(ranges(registry)) == 1


def test_the_next_client_goes_on_with_what_the_last_one_left(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", ranged(PIECE), status(500))
    with pytest.raises(RegistryError):
        fetch(registry, store)
    registry.script("blobs", ranged())
    fetch(registry, store)
    assert ranges(registry)[-1] == "bytes=100000-"


def test_what_was_left_and_is_damaged_is_fetched_anew(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", ranged(PIECE), status(500))
    with pytest.raises(RegistryError):
        fetch(registry, store)
    left = next((store.root / "blobs").rglob(".partial-*"))
    left.write_bytes(b"x" + left.read_bytes()[1:])
    registry.script("blobs", ranged())
    fetch(registry, store)
    assert ranges(registry)[-2:] == ["bytes=100000-", None]


def test_a_registry_without_ranges_sends_all_of_it_again(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", truncated(PIECE), ok())
    fetch(registry, store)
    assert ranges(registry) == [None, "bytes=100000-"]


@pytest.mark.parametrize(
    "wrong",
    [
        ranged(Content_Range=f"bytes 0-{len(MODULE) - 1}/{len(MODULE)}"),
        ranged(Content_Range=f"bytes 100000-{len(MODULE) - 1}/*"),
        ranged(Content_Range="nonsense"),
        ranged(keep=5, Content_Length="5"),
        status(416, b""),
    ],
)
def test_another_part_than_was_asked_for_is_not_taken(
    registry: FaultyRegistry, store: OciLayout, wrong: Answer
) -> None:
    registry.script("blobs", ranged(PIECE), wrong, ranged())
    fetch(registry, store)
    assert ranges(registry) == [None, "bytes=100000-", None]


def test_a_part_nobody_asked_for_is_an_error(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", status(206, MODULE))
    with pytest.raises(RegistryError, match="206"):
        fetch(registry, store)


def test_a_part_with_other_bytes_is_found_at_the_end(registry: FaultyRegistry, store: OciLayout) -> None:
    changed = MODULE[:-1] + b"x"
    rest = changed[PIECE:]
    place = f"bytes {PIECE}-{len(MODULE) - 1}/{len(MODULE)}"
    wrong = Answer(lambda handler, _body, kind: handler.reply(206, rest, kind, Content_Range=place))
    registry.script("blobs", ranged(PIECE), wrong)
    with pytest.raises(DigestMismatch):
        fetch(registry, store)
    assert [path for path in (store.root / "blobs").rglob("*") if path.is_file()] == []


def test_progress_grows_and_ends_with_the_whole(registry: FaultyRegistry, store: OciLayout) -> None:
    told: list[int] = []
    registry.script("blobs", ranged(PIECE))
    with client(registry) as connected:
        connected.copy_blob(descriptor(MODULE), store, "the module", told.append)
        connected.copy_blob(descriptor(MODULE), store, "the module", told.append)
    assert told == sorted(told)
    assert told[-2:] == [len(MODULE), len(MODULE)]
    assert registry.sent == len(MODULE)


def test_a_blob_of_no_bytes_is_one(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", other(b""))
    fetch(registry, store, data=b"")


def test_another_manifest_of_the_repository_is_found_or_not(registry: FaultyRegistry) -> None:
    with client(registry) as connected:
        found = connected.find_manifest("v2")
        assert found is not None
        assert str(found.digest) == registry.manifest_digest
        with pytest.raises(DigestMismatch):
            connected.find_manifest(f"sha256:{'0' * 64}")
        registry.script("manifests", status(404))
        assert connected.find_manifest("v3") is None
        registry.script("manifests", status(400))
        with pytest.raises(RegistryError):
            connected.find_manifest("v3")


SUBJECT = Digest.of(b"subject")


def index(*names: str, kind: str = OCI_INDEX) -> Answer:
    manifests = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
            "size": len(name),
            "artifactType": f"application/{name}",
        }
        for name in names
    ]
    return other(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode(), kind)


def kinds(found: tuple[Descriptor, ...]) -> list[str]:
    return [one.artifact_type for one in found]


def test_referrers_are_listed_by_the_api_over_several_pages(registry: FaultyRegistry) -> None:
    more = f'</v2/demo/add/referrers/{SUBJECT}?last=x>; rel="next"'
    registry.script("referrers", _with_link(("one", "two"), more), index("two", "three"))
    with client(registry) as connected:
        assert kinds(connected.referrers(SUBJECT)) == ["application/one", "application/two", "application/three"]
    assert registry.requests("referrers")[1].path.endswith("?last=x")


def _with_link(names: tuple[str, ...], link: str) -> Answer:
    plain = index(*names)

    def deliver(handler: Any, body: bytes, kind: str) -> None:
        reply = handler.reply

        def linked(code: int, data: bytes, media_type: str, **headers: str) -> None:
            reply(code, data, media_type, Link=link, **headers)

        handler.reply = linked
        plain.deliver(handler, body, kind)
        handler.reply = reply

    return Answer(deliver)


@pytest.mark.parametrize("answer", [status(404), status(405), other(b"<html>", "text/html"), other(b"{}")])
def test_where_the_api_is_missing_the_tag_that_stands_for_it_is_taken(registry: FaultyRegistry, answer: Answer) -> None:
    registry.script("referrers", answer)
    registry.script("manifests", index("one"))
    with client(registry) as connected:
        assert kinds(connected.referrers(SUBJECT)) == ["application/one"]
        registry.script("manifests", status(404))
        assert connected.referrers(SUBJECT) == ()
    assert registry.requests("manifests")[0].path.endswith(f"/manifests/sha256-{SUBJECT.hex}")


def test_pages_of_referrers_without_end_are_not_followed(registry: FaultyRegistry) -> None:
    registry.script("referrers", _with_link(("one",), "<?again>; rel=next"))
    with client(registry) as connected:
        assert kinds(connected.referrers(SUBJECT)) == ["application/one"]
    assert len(registry.requests("referrers")) < 50


def test_a_list_of_referrers_that_is_none_is_refused(registry: FaultyRegistry) -> None:
    registry.script("referrers", other(b"[]", OCI_INDEX))
    with client(registry) as connected, pytest.raises(InvalidManifest):
        connected.referrers(SUBJECT)


def test_a_web_page_instead_of_a_manifest_is_said_to_be_one(registry: FaultyRegistry) -> None:
    registry.script("manifests", other(b"<html>log in</html>", "text/html; charset=utf-8"))
    with client(registry) as connected, pytest.raises(RegistryError, match="web page"):
        connected.manifest()


def test_what_is_sent_is_sent_again_from_its_beginning(registry: FaultyRegistry) -> None:
    registry.script("blobs", status(503), status(201))
    body = io.BytesIO(b"skipped" + b"sent")
    body.seek(7)
    with client(registry) as connected, connected.exchange("PUT", "/blobs/uploads/1", data=body) as response:
        assert response.status_code == 201
    assert registry.bodies == [b"sent", b"sent"]


def test_a_part_of_an_upload_that_failed_is_not_sent_again(registry: FaultyRegistry) -> None:
    registry.script("blobs", status(500), status(202))
    with client(registry) as connected, connected.exchange("PATCH", "/blobs/uploads/1", data=b"x") as response:
        assert response.status_code == 500


def test_urls_of_the_registry_are_taken_as_they_come(registry: FaultyRegistry) -> None:
    with client(registry) as connected:
        for url in ("/blobs/x", "/v2/demo/add/blobs/x", f"http://{registry.address}/v2/demo/add/blobs/x"):
            connected.exchange("GET", url).close()
    assert {one.path for one in registry.seen} == {"/v2/demo/add/blobs/x"}


@pytest.mark.parametrize("url", ["http://[x/", "file:///etc/passwd", "https://a.b:port/", "gopher://a.b/"])
def test_what_is_no_url_of_a_registry_is_not_followed(registry: FaultyRegistry, url: str) -> None:
    with client(registry) as connected, pytest.raises(RegistryError):
        connected.exchange("GET", url)


def test_credentials_are_not_shown_where_a_location_leads_elsewhere(registry: FaultyRegistry) -> None:
    host = HostSettings(username="user", password="s3cret")
    settings = RegistrySettings(hosts={registry.address: host}, use_docker_config=False)
    registry.script("blobs", status(401, WWW_Authenticate='Basic realm="x"'), ok())
    with faulty_registry() as storage, client(registry, settings) as connected:
        connected.exchange("GET", "/blobs/x").close()
        connected.exchange("PUT", f"http://{storage.address}/blobs/x", data=b"x").close()
        assert "Authorization" in registry.seen[-1].headers
        assert "Authorization" not in storage.seen[0].headers


def test_a_registry_that_breaks_every_connection_is_given_up(registry: FaultyRegistry, store: OciLayout) -> None:
    registry.script("blobs", truncated(20))
    with pytest.raises((RegistryUnreachable, Truncated)):
        fetch(registry, store)
    assert len(ranges(registry)) == QUICK.max_attempts


def test_a_longer_blob_is_refused_before_it_is_read(registry: FaultyRegistry, store: OciLayout) -> None:
    with pytest.raises(SizeMismatch):
        fetch(registry, store, data=MODULE[:-1])
    assert registry.sent < 2 * len(MODULE)


def test_a_mirror_is_told_whose_image_is_meant(registry: FaultyRegistry) -> None:
    with client(registry, namespace="docker.io") as connected:
        connected.manifest()
    assert registry.seen[0].path == "/v2/demo/add/manifests/v1?ns=docker.io"


def test_a_blob_behind_a_redirect_is_continued_there(registry: FaultyRegistry, store: OciLayout) -> None:
    with faulty_registry(module=MODULE) as storage:
        registry.script("blobs", redirect(f"http://{storage.address}/blobs/x"))
        storage.script("blobs", ranged(PIECE))
        fetch(registry, store)
        assert ranges(storage) == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


@given(st.text())
def test_headers_that_are_none_are_no_error(text: str) -> None:
    content_range({"Content-Range": text})
    retry_after({"Retry-After": text})
    next_page({"Link": text}, "https://a.b/")
    next_page({"Link": f"<{text}>; rel=next"}, "https://a.b/")


@given(st.integers(0, 10**18), st.integers(0, 10**18), st.integers(0, 10**18))
def test_a_content_range_is_read_as_it_is_written(first: int, last: int, size: int) -> None:
    assert content_range({"Content-Range": f"bytes {first}-{last}/{size}"}) == (first, last, size)


@pytest.mark.parametrize(
    ("link", "url"),
    [
        ('</v2/x?n=1>; rel="next"', "https://h.i/v2/x?n=1"),
        ("<https://a.b/c,d>; title=x; rel=next", "https://a.b/c,d"),
        ('<a>; rel="prev", <b>; rel="next"', "https://h.i/v2/b"),
        ('<http://[x>; rel="next"', None),
        ('<a>; rel="prev"', None),
        ("", None),
    ],
)
def test_the_next_page_is_where_the_link_says(link: str, url: str | None) -> None:
    assert next_page({"Link": link}, "https://h.i/v2/y") == url


def test_a_registry_that_hangs_up_before_its_first_answer_is_asked_again(
    registry: FaultyRegistry,
) -> None:
    registry.script("manifests", raw(b""), raw(b""), ok())
    with RegistryClient(Reference.parse(registry.reference), QUICK) as client:
        assert client.manifest().data == registry.manifest
    registry.script("manifests", raw(b""))
    with (
        RegistryClient(Reference.parse(registry.reference), QUICK) as client,
        pytest.raises(ConnectionBroken, match="broke the connection"),
    ):
        client.manifest()

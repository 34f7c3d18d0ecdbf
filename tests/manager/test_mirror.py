"""The mirror of the store as a registry: what it answers, to whom, and what it keeps to itself."""

import json
import os
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.manager.images import ImagesSettings, open_images
from proplet.manager.mirror import MirrorError, MirrorSettings, open_mirror, own_registries, without_own
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor
from proplet.oci.pull import pull
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.manager.mirrors import MODULE, Asker, put_image, serving
from tests.support.image_tools import skopeo
from tests.support.registry import ADDITION, make_tls_files

pytestmark = pytest.mark.anyio

PRIVATE = "private.example/team/secret"
USER = {"username": "device", "password": "not for everybody"}
SHOWN = "device:not for everybody"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def test_our_own_puller_takes_an_image_from_it(store: Path, tmp_path: Path) -> None:
    digest = put_image(store, "localhost/demo/addition:1")
    async with serving(store) as served:
        image = f"{served.mirror.address}/demo/addition:1"
        pulled = await to_thread.run_sync(pull, image, OciLayout(tmp_path / "other"))
        assert (str(pulled.manifest_digest), pulled.path.read_bytes()) == (digest, ADDITION)


async def test_skopeo_takes_an_image_from_it(store: Path, tmp_path: Path) -> None:
    tool = skopeo(tmp_path)
    put_image(store, "localhost/demo/addition:1")
    async with serving(store) as served:
        source = f"docker://{served.mirror.address}/demo/addition"
        await to_thread.run_sync(tool.run, "copy", f"{source}:1", f"oci:{tmp_path / 'out'}:1", "--src-tls-verify=false")
        tags = await to_thread.run_sync(tool.run, "list-tags", "--tls-verify=false", source)
    assert OciLayout(tmp_path / "out").path(Digest.parse(MODULE)).read_bytes() == ADDITION
    assert '"1"' in tags


async def test_a_manifest_comes_by_tag_and_by_digest_with_what_clients_go_by(store: Path) -> None:
    digest = put_image(store, "localhost/a/b:1")
    async with serving(store) as served:
        base = await served.ask("/v2/")
        assert (base.status, base.headers["docker-distribution-api-version"]) == (200, "registry/2.0")
        by_tag = await served.ask("/v2/a/b/manifests/1")
        assert by_tag.headers["docker-content-digest"] == digest == str(Digest.of(by_tag.body))
        assert by_tag.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
        assert (await served.ask(f"/v2/a/b/manifests/{digest}")).body == by_tag.body
        head = await served.ask("/v2/a/b/manifests/1", "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(by_tag.body))
        assert (await served.ask("/v2/a/b/manifests/1", if_none_match=f'"{digest}"')).status == 304
        # An encoded digest is the same digest.
        assert (await served.ask(f"/v2/a/b/manifests/{digest.replace(':', '%3A')}")).body == by_tag.body
        missing = await served.ask("/v2/a/b/manifests/2")
        assert (missing.status, missing.code) == (404, "MANIFEST_UNKNOWN")
        assert (await served.ask("/v2/no/such/manifests/1")).code == "NAME_UNKNOWN"


async def test_a_blob_comes_whole_or_in_ranges(store: Path) -> None:
    wasm = ADDITION + bytes(range(256)) * 4096  # a megabyte: several pieces
    put_image(store, "localhost/a/b:1", wasm)
    path, size = f"/v2/a/b/blobs/{Digest.of(wasm)}", len(wasm)
    async with serving(store) as served:
        whole = await served.ask(path)
        assert (whole.status, whole.body) == (200, wasm)
        assert whole.headers["content-length"] == str(size)
        head = await served.ask(path, "HEAD")
        assert (head.status, head.headers["content-length"], head.headers["accept-ranges"]) == (200, str(size), "bytes")
        part = await served.ask(path, range="bytes=1000-")
        assert (part.status, part.body) == (206, wasm[1000:])
        assert part.headers["content-range"] == f"bytes 1000-{size - 1}/{size}"
        last = await served.ask(path, range="bytes=-7", if_range=whole.headers["etag"])
        assert (last.status, last.body) == (206, wasm[-7:])
        other = await served.ask(path, range="bytes=-7", if_range='"another"')
        assert (other.status, len(other.body)) == (200, size)
        behind = await served.ask(path, range=f"bytes={size}-")
        assert (behind.status, behind.headers["content-range"]) == (416, f"bytes */{size}")
        assert (await served.ask(path, if_none_match=whole.headers["etag"])).status == 304


async def test_a_blob_is_served_only_as_part_of_an_image_of_that_repository(store: Path) -> None:
    put_image(store, "localhost/a/b:1")
    put_image(store, "localhost/other:1", ADDITION + b"\0\2\1x")
    inline = OciLayout(store).add_blob(b"\0asm came with a task")
    async with serving(store) as served:
        assert (await served.ask(f"/v2/a/b/blobs/{MODULE}")).status == 200
        for path in (f"/v2/other/blobs/{MODULE}", f"/v2/a/b/blobs/{inline}", f"/v2/a/b/blobs/{Digest.of(b'none')}"):
            refused = await served.ask(path)
            assert (refused.status, refused.code) == (404, "BLOB_UNKNOWN")


async def test_tags_and_repositories_come_in_pages(store: Path) -> None:
    for tag in ("1", "2", "3"):
        put_image(store, f"localhost/a/b:{tag}")
    put_image(store, "localhost/c:1")
    async with serving(store) as served:
        assert (await served.ask("/v2/a/b/tags/list")).json == {"name": "a/b", "tags": ["1", "2", "3"]}
        first = await served.ask("/v2/a/b/tags/list?n=2")
        assert first.json["tags"] == ["1", "2"]
        link = first.headers["link"]
        assert link == '</v2/a/b/tags/list?n=2&last=2>; rel="next"'
        then = await served.ask(link[1:].partition(">")[0])
        assert (then.json["tags"], "link" in then.headers) == (["3"], False)
        assert (await served.ask("/v2/a/b/tags/list?n=x")).code == "PAGINATION_NUMBER_INVALID"
        assert (await served.ask("/v2/_catalog")).json == {"repositories": ["localhost/a/b", "localhost/c"]}


async def test_nothing_can_be_pushed_or_deleted(store: Path) -> None:
    digest = put_image(store, "localhost/a/b:1")
    async with serving(store) as served:
        for method, path in (
            ("POST", "/v2/a/b/blobs/uploads/"),
            ("PUT", "/v2/a/b/manifests/2"),
            ("DELETE", f"/v2/a/b/manifests/{digest}"),
            ("PATCH", "/v2/a/b/blobs/uploads/1"),
        ):
            refused = await served.ask(path, method)
            assert (refused.status, refused.code, refused.headers["allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
        assert (await served.ask("/v2/a/b/tags/list")).json["tags"] == ["1"]


async def test_without_a_password_what_the_node_pulled_for_itself_stays_private(store: Path) -> None:
    put_image(store, f"{PRIVATE}:1")
    put_image(store, "localhost/open:1")
    async with serving(store) as served:
        for path in (f"/v2/{PRIVATE}/manifests/1", "/v2/team/secret/manifests/1", f"/v2/{PRIVATE}/blobs/{MODULE}",
                     "/v2/team/secret/manifests/1?ns=private.example", "/v2/team/secret/tags/list"):  # fmt: skip
            refused = await served.ask(path)
            assert (refused.status, refused.code) == (404, "NAME_UNKNOWN")
        assert (await served.ask("/v2/_catalog")).json == {"repositories": ["localhost/open"]}


async def test_with_the_password_the_whole_store_is_served_under_each_of_its_names(store: Path) -> None:
    put_image(store, f"{PRIVATE}:1")
    async with serving(store, **USER) as served:
        known = Asker(served.mirror.address, credentials=SHOWN)
        for path in (
            f"/v2/{PRIVATE}/manifests/1",
            "/v2/team/secret/manifests/1",
            "/v2/team/secret/manifests/1?ns=private.example",
        ):
            assert (await known(path)).status == 200
            for credentials in (None, "device:", "device:wrong", "other:not for everybody", SHOWN + "x", ":"):
                refused = await Asker(served.mirror.address, credentials=credentials)(path)
                assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
                assert refused.headers["www-authenticate"].startswith("Basic realm=")
        bearer = await served.ask("/v2/", Authorization=f"Bearer {SHOWN}")
        assert bearer.status == 401


async def test_a_web_page_cannot_use_it_from_a_browser_of_this_machine(store: Path) -> None:
    put_image(store, "localhost/a:1")
    async with serving(store) as served:
        assert (await served.ask("/v2/a/manifests/1", host="evil.example")).status == 421
        assert (await served.ask("/v2/a/manifests/1", origin="https://evil.example")).status == 403
        assert (await served.ask("/v2/a/manifests/1", sec_fetch_site="cross-site")).status == 403
        assert (await served.ask("/v2/a/manifests/1", host="localhost")).status == 200


async def test_over_tls_with_a_password_our_puller_and_skopeo_take_images(store: Path, tmp_path: Path) -> None:
    tool, tls = skopeo(tmp_path), make_tls_files(tmp_path / "tls")
    put_image(store, f"{PRIVATE}:1")
    async with serving(store, tls_certificate=tls.certificate, tls_key=tls.key, **USER) as served:
        address = served.mirror.address
        host = HostSettings(ca_file=tls.ca, plain_http=False, **USER)
        with_access = RegistrySettings(hosts={address: host}, use_docker_config=False)
        image = f"{address}/team/secret:1"
        pulled = await to_thread.run_sync(pull, image, OciLayout(tmp_path / "other"), with_access)
        assert pulled.path.read_bytes() == ADDITION
        certificates = tmp_path / "certificates"
        certificates.mkdir()
        (certificates / "ca.crt").write_bytes(tls.ca.read_bytes())
        await to_thread.run_sync(
            tool.run, "copy", f"docker://{address}/team/secret:1", f"oci:{tmp_path / 'out'}:1",
            f"--src-cert-dir={certificates}", f"--src-creds={SHOWN}",
        )  # fmt: skip
        assert (await Asker(address, tls.ca, SHOWN)(f"/v2/{PRIVATE}/tags/list")).json["tags"] == ["1"]


@pytest.mark.parametrize(
    "how",
    [{"host": "0.0.0.0"}, {"host": "0.0.0.0", **USER}, {"username": "u"}, {"tls_key": Path("key")}, {"host": "a.lan"}],
)
def test_beyond_loopback_it_needs_tls_and_a_password(how: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(MirrorError):
        MirrorSettings(tmp_path, **how).check()  # type: ignore[arg-type]


async def test_a_damaged_blob_is_not_there_until_it_is_mended(store: Path) -> None:
    wasm = ADDITION + bytes(1000)
    put_image(store, "localhost/a:1", wasm)
    file = OciLayout(store).path(Digest.of(wasm))
    file.write_bytes(wasm[:500] + b"x" + wasm[501:])
    path = f"/v2/a/blobs/{Digest.of(wasm)}"
    async with serving(store) as served:
        for method in ("HEAD", "GET", "GET"):
            assert (await served.ask(path, method)).status == 404
        put_image(store, "localhost/a:1", wasm)
        assert (await served.ask(path)).body == wasm


async def test_a_blob_that_turns_out_damaged_while_it_is_sent_is_broken_off(store: Path) -> None:
    wasm = ADDITION + bytes(40_000_000)  # more than sockets take in advance
    put_image(store, "localhost/a:1", wasm)
    path = f"/v2/a/blobs/{Digest.of(wasm)}"
    async with serving(store) as served:
        host, _, port = served.mirror.address.rpartition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = len(await stream.receive(1000))
            with OciLayout(store).path(Digest.of(wasm)).open("r+b") as damaged:
                damaged.seek(len(wasm) - 1000)
                damaged.write(b"x")
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    received += len(await stream.receive(1_000_000))
        assert 1000 < received < len(wasm)
        assert (await served.ask(path, "HEAD")).status == 404


async def test_a_damaged_manifest_is_not_served(store: Path) -> None:
    digest = put_image(store, "localhost/a:1")
    file = OciLayout(store).path(Digest.parse(digest))
    file.write_bytes(file.read_bytes().replace(b"module", b"nodule"))
    async with serving(store) as served:
        refused = await served.ask("/v2/a/manifests/1")
        assert (refused.status, refused.code) == (404, "MANIFEST_UNKNOWN")


async def test_what_refers_to_an_image_is_listed_by_its_type(store: Path) -> None:
    digest = put_image(store, "localhost/a:1")
    layout, config = OciLayout(store), OciLayout(store).add_blob(b"{}")
    signature = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": "application/vnd.example.signature",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(config), "size": 2},
            "layers": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1},
            "annotations": {"by": "somebody"},
        }
    ).encode()
    added = layout.add_blob(signature)
    layout.set_reference(f"localhost/a@{added}", Descriptor(OCI_MANIFEST, added, len(signature)))
    async with serving(store) as served:
        every = await served.ask(f"/v2/a/referrers/{digest}")
        assert every.headers["content-type"] == "application/vnd.oci.image.index.v1+json"
        (entry,) = every.json["manifests"]
        assert entry == {
            "mediaType": OCI_MANIFEST,
            "digest": str(added),
            "size": len(signature),
            "artifactType": "application/vnd.example.signature",
            "annotations": {"by": "somebody"},
        }
        some = await served.ask(f"/v2/a/referrers/{digest}?artifactType=application%2Fother")
        assert (some.json["manifests"], some.headers["oci-filters-applied"]) == ([], "artifactType")
        assert (await served.ask(f"/v2/a/manifests/{added}")).body == signature
        assert (await served.ask(f"/v2/a/referrers/{Digest.of(b'none')}")).json["manifests"] == []


PIECES = (
    ".. . %2e%2e %2F / // \\ %00 %0d%0aX:y v2 a manifests blobs tags list referrers 1 sha256: index.json ?ns= "
    "?n=1&last= %ff ; @ _catalog localhost index.json%00 oci-layout"
).split()


async def test_no_path_reaches_anything_but_images(store: Path, tmp_path: Path) -> None:
    put_image(store, f"{PRIVATE}:1")
    put_image(store, "localhost/a:1", ADDITION + b"\0\2\1x")
    (tmp_path / "outside").write_bytes(b"the host's")
    paths = st.lists(st.sampled_from([*PIECES, MODULE]), max_size=8).map(lambda pieces: "/v2/" + "/".join(pieces))
    tried: list[str] = []

    @settings(max_examples=150)
    @given(paths)
    def collect(path: str) -> None:
        tried.append(path)

    collect()
    tried += [f"/v2/a/blobs/sha256:{'%2e%2e%2f' * 7}a", "/v2/a/blobs/..%2f..%2fcoutside", "/../../etc/passwd", "//v2/"]
    async with serving(store) as served:
        for path in tried:
            answer = await served.ask(path)
            assert answer.status in {200, 400, 404}, (path, answer)
            assert b"the host's" not in answer.body
            assert b"private" not in answer.body
            assert answer.body != ADDITION


async def test_a_client_that_leaves_in_the_middle_costs_nothing_more(store: Path) -> None:
    wasm = ADDITION + bytes(8_000_000)
    put_image(store, "localhost/a:1", wasm)
    async with serving(store) as served:
        host, _, port = served.mirror.address.rpartition(":")
        for _ in range(6):
            async with await anyio.connect_tcp(host, int(port)) as stream:
                head = f"GET /v2/a/blobs/{Digest.of(wasm)} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                await stream.send(head.encode())
                await stream.receive(1000)
        assert (await served.ask(f"/v2/a/blobs/{Digest.of(wasm)}")).body == wasm


def test_pulls_for_the_mirror_do_not_ask_the_mirror_itself() -> None:
    hosts = {"ghcr.io": HostSettings(mirrors=("127.0.0.1:5000", "other.lan:5000/cache", "localhost:5000/x"))}
    left = without_own(RegistrySettings(hosts=hosts), "127.0.0.1", 5000)
    assert left.hosts["ghcr.io"].mirrors == ("other.lan:5000/cache",)
    assert "localhost" in own_registries("127.0.0.1", 5000)


async def test_a_port_that_another_has_is_said(store: Path) -> None:
    async with serving(store) as served:
        port = int(served.mirror.address.rpartition(":")[2])
        with pytest.raises(MirrorError, match=r"the mirror cannot listen on .* another program listens there"):
            async with open_images(ImagesSettings(store)) as images:
                await open_mirror(MirrorSettings(store, port=port), images).__aenter__()


async def test_an_index_that_cannot_be_understood_is_an_error_and_no_empty_registry(store: Path) -> None:
    put_image(store, "localhost/a:1")
    async with serving(store) as served:
        (store / "index.json").write_bytes(b"{")
        answer = await served.ask("/v2/a/manifests/1")
        assert (answer.status, answer.code) == (500, "UNKNOWN")
        assert str(store) not in answer.body.decode()


async def test_what_is_served_counts_as_used(store: Path) -> None:
    digest = put_image(store, "localhost/a:1")
    files = [OciLayout(store).path(Digest.parse(each)) for each in (digest, MODULE)]
    for file in files:
        os.utime(file, (1000, 1000))
    async with serving(store) as served:
        assert (await served.ask(f"/v2/a/blobs/{MODULE}")).body == ADDITION
    assert all(file.stat().st_mtime > 1_000_000 for file in files)

"""Facts about images that were pushed to a real registry, and about invalid manifests."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.api.references import Reference, parse
from imagegate.registry import documents, errors
from imagegate.registry.client import Document
from imagegate.registry.documents import Compression, Index, Layer, Manifest
from imagegate.registry.manifests import Manifests
from imagegate.registry.platforms import Platform
from tests.unit.registry.conftest import Counter, MakeClient
from tests.unit.registry.distribution import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_GZIP,
    OCI_INDEX,
    OCI_MANIFEST,
    OCI_ZSTD,
    Descriptor,
    Registry,
    digest_of,
    encoded,
)
from tests.unit.registry.scripted import Scripted

AMD64 = Platform.of("linux", "amd64")
ARM64 = Platform.of("linux", "arm64")
DIGEST = f"sha256:{'a' * 64}"


def name(registry: Registry, rest: str) -> Reference:
    return parse(f"{registry.domain}/{rest}")


def two_platforms(registry: Registry, repository: str, *, docker: bool = False) -> Descriptor:
    """An index of two images, with an attestation of the first image as BuildKit adds it."""
    entries = []
    for number, architecture in enumerate(["amd64", "arm64"]):
        platform = {"os": "linux", "architecture": architecture}
        layers = (b"shared base", b"x" * (100 * (number + 1)), b"shared base")
        entry = registry.image(repository, "", layers=layers, platform=platform, docker=docker)
        entries.append({**entry, "platform": platform})
    unknown = {"os": "unknown", "architecture": "unknown"}
    attestation = registry.image(repository, "", layers=(b"provenance" * 1000,), platform=unknown)
    attestation["platform"] = unknown
    attestation["annotations"] = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": entries[0]["digest"],
    }
    index = registry.index(
        repository, "v1", entries if docker else [attestation, *entries], docker=docker
    )
    return {**index, "children": entries}


class TestIndex:
    @pytest.mark.parametrize("docker", [False, True])
    async def test_facts_are_those_of_the_requested_platform(
        self, open_registry: Registry, make_client: MakeClient, docker: bool
    ) -> None:
        index = two_platforms(open_registry, f"ml/two-{docker}".lower(), docker=docker)
        reference = name(open_registry, f"ml/two-{docker}:v1".lower())
        facts = await Manifests(make_client()).describe(reference, ARM64)
        assert facts.reference.digest == index["digest"]
        assert facts.manifest == index["children"][1]["digest"]
        assert facts.platform == ARM64
        assert facts.platforms == (AMD64, ARM64)
        assert [layer.size for layer in facts.layers] == [11, 200, 11]
        assert facts.largest_layer == facts.layers[1]
        assert {layer.compression for layer in facts.layers} == {Compression.GZIP}
        config = encoded({"os": "linux", "architecture": "arm64"})
        assert facts.config_bytes == len(config)
        assert facts.compressed_bytes == 11 + 200 + len(config)

    async def test_cached_facts_cost_no_request(
        self, open_registry: Registry, make_client: MakeClient, counter: Counter
    ) -> None:
        index = two_platforms(open_registry, "ml/asked-twice")
        tag = name(open_registry, "ml/asked-twice:v1")
        pinned = name(open_registry, f"ml/asked-twice@{index['digest']}")
        manifests = Manifests(make_client())
        first = await manifests.describe(tag, AMD64)
        assert len(counter.codes) == 3  # HEAD of the tag, GET of the index, GET of the manifest
        assert (await manifests.describe(pinned, AMD64)).layers == first.layers
        assert await manifests.platforms(pinned) == (AMD64, ARM64)
        assert len(counter.codes) == 3
        await manifests.describe(tag, AMD64)
        assert len(counter.codes) == 4  # one HEAD, because the tag may have changed
        await manifests.describe(pinned, ARM64)
        assert len(counter.codes) == 5  # one GET of the other platform's manifest

    async def test_concurrent_calls_share_their_requests(
        self, open_registry: Registry, make_client: MakeClient, counter: Counter
    ) -> None:
        index = two_platforms(open_registry, "ml/asked-by-many")
        pinned = name(open_registry, f"ml/asked-by-many@{index['digest']}")
        manifests = Manifests(make_client())
        await asyncio.gather(*(manifests.describe(pinned, AMD64) for _ in range(20)))
        assert len(counter.codes) == 2

    async def test_missing_platform_is_an_error_with_the_available_platforms(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        two_platforms(open_registry, "ml/no-power")
        reference = name(open_registry, "ml/no-power:v1")
        with pytest.raises(
            errors.NoSuchPlatform,
            match=r"ml/no-power:v1@sha256:\w+ is there for linux/amd64, linux/arm64, not for",
        ) as caught:
            await Manifests(make_client()).describe(reference, Platform.of("linux", "ppc64le"))
        assert "nodeSelector" in str(caught.value)

    async def test_nested_index_is_rejected_if_its_platform_is_needed(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        inner = two_platforms(open_registry, "ml/nested")
        image = {**inner["children"][1], "platform": {"os": "linux", "architecture": "arm64"}}
        nested = {key: inner[key] for key in ("mediaType", "digest", "size")}
        open_registry.index("ml/nested", "outer", [nested, image])
        reference = name(open_registry, "ml/nested:outer")
        manifests = Manifests(make_client())
        assert (await manifests.describe(reference, ARM64)).platform == ARM64
        with pytest.raises(errors.UnsupportedManifest, match="an index within its index"):
            await manifests.describe(reference, AMD64)

    async def test_platform_is_read_from_the_image_if_the_index_has_none(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        image = open_registry.image(
            "ml/unsaid", "", platform={"os": "linux", "architecture": "arm64"}
        )
        open_registry.index("ml/unsaid", "v1", [image])
        reference = name(open_registry, "ml/unsaid:v1")
        manifests = Manifests(make_client())
        assert (await manifests.describe(reference, ARM64)).platform == ARM64
        with pytest.raises(errors.NoSuchPlatform, match="is there for linux/arm64, not for"):
            await manifests.describe(reference, AMD64)

    async def test_index_without_images_has_no_platform(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        open_registry.index("ml/empty", "v1", [])
        with pytest.raises(errors.NoSuchPlatform, match="is there for none"):
            await Manifests(make_client()).describe(name(open_registry, "ml/empty:v1"), AMD64)


class TestSingleImage:
    @pytest.mark.parametrize("docker", [False, True])
    async def test_platform_is_that_of_the_configuration(
        self, open_registry: Registry, make_client: MakeClient, counter: Counter, docker: bool
    ) -> None:
        platform = {"os": "linux", "architecture": "arm64", "variant": "v8"}
        tag = f"single-{docker}".lower()
        pushed = open_registry.image("ml/single", tag, platform=platform, docker=docker)
        reference = name(open_registry, f"ml/single:{tag}")
        manifests = Manifests(make_client())
        facts = await manifests.describe(reference, ARM64)
        assert (facts.manifest, facts.reference.digest) == (pushed["digest"], pushed["digest"])
        assert (facts.platform, facts.platforms) == (ARM64, (ARM64,))
        assert await manifests.platforms(reference) == (ARM64,)
        with pytest.raises(errors.NoSuchPlatform, match="build it for linux/amd64"):
            await manifests.describe(reference, AMD64)
        assert len(counter.codes) == 5  # one GET of manifest and configuration, and three HEADs

    async def test_compression_follows_from_the_layer_type(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        for kind, expected in [
            (OCI_ZSTD, Compression.ZSTD),
            ("application/vnd.oci.image.layer.v1.tar", Compression.NONE),
        ]:
            open_registry.image("ml/packed", "v1", layer_type=kind)
            facts = await Manifests(make_client()).describe(
                name(open_registry, "ml/packed:v1"), AMD64
            )
            assert [layer.compression for layer in facts.layers] == [expected]

    async def test_image_without_layers_has_no_largest_layer(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        open_registry.image("ml/bare", "v1", layers=())
        facts = await Manifests(make_client()).describe(name(open_registry, "ml/bare:v1"), AMD64)
        assert (facts.layers, facts.largest_layer) == ((), None)

    async def test_artifact_is_for_every_platform(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        chart = open_registry.blob("ml/chart", b"{}", "application/vnd.cncf.helm.config.v1+json")
        layer = open_registry.blob("ml/chart", b"chart", "application/vnd.cncf.helm.chart.v1.tar")
        content = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": chart,
            "layers": [layer],
        }
        open_registry.manifest("ml/chart", "v1", content)
        facts = await Manifests(make_client()).describe(name(open_registry, "ml/chart:v1"), ARM64)
        assert (facts.platform, facts.platforms) == (None, ())
        assert facts.compressed_bytes == 7

    @pytest.mark.parametrize("config", [b"{}", b"nonsense", b'{"os": 5, "architecture": "arm"}'])
    async def test_configuration_without_a_platform_is_an_invalid_answer(
        self, open_registry: Registry, make_client: MakeClient, config: bytes
    ) -> None:
        blob = open_registry.blob("ml/silent", config, OCI_CONFIG)
        content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []}
        open_registry.manifest("ml/silent", "v1", content)
        reference = name(open_registry, "ml/silent:v1")
        with pytest.raises(errors.InvalidAnswer, match="configuration without os"):
            await Manifests(make_client()).describe(reference, AMD64)


async def test_image_of_schema_1_is_unsupported(
    scripted: Scripted, make_client: MakeClient
) -> None:
    body = encoded({"schemaVersion": 1, "name": "ml/old", "fsLayers": [{"blobSum": DIGEST}]})
    digest = digest_of(body)
    kind = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    scripted.say("HEAD", "/v2/ml/old/manifests/v1", 200, b"", {"Docker-Content-Digest": digest})
    scripted.say("GET", f"/v2/ml/old/manifests/{digest}", 200, body, kind)
    with pytest.raises(errors.UnsupportedManifest, match="ml/old is an image of schema 1"):
        await Manifests(make_client()).describe(parse(f"{scripted.domain}/ml/old:v1"), AMD64)


async def test_signed_image_of_schema_1_is_unsupported(
    scripted: Scripted, make_client: MakeClient
) -> None:
    """The digest of such an image covers the signed content without the signatures."""
    content = {"schemaVersion": 1, "name": "ml/old", "fsLayers": [{"blobSum": DIGEST}]}
    digest = digest_of(encoded(content))
    body = encoded({**content, "signatures": [{"signature": "x", "protected": "y"}]})
    scripted.say("HEAD", "/v2/ml/old/manifests/v1", 200, b"", {"Docker-Content-Digest": digest})
    scripted.say("GET", f"/v2/ml/old/manifests/{digest}", 200, body)
    with pytest.raises(errors.UnsupportedManifest, match="ml/old is an image of schema 1"):
        await Manifests(make_client()).describe(parse(f"{scripted.domain}/ml/old:v1"), AMD64)


def blob(**changes: Any) -> dict[str, Any]:
    return {"mediaType": OCI_GZIP, "digest": DIGEST, "size": 5, **changes}


def read(content: dict[str, Any], media_type: str = "") -> Index | Manifest:
    return documents.parse(Document(DIGEST, media_type, content), registry="r.test", name="app")


class TestParse:
    @pytest.mark.parametrize("media_type", ["", "application/json", "text/plain", OCI_MANIFEST])
    def test_kind_is_that_of_the_body_then_the_header_then_the_fields(
        self, media_type: str
    ) -> None:
        assert isinstance(read({"mediaType": OCI_INDEX, "manifests": []}, media_type), Index)
        assert isinstance(read({"config": blob(), "layers": []}, media_type), Manifest)
        assert isinstance(read({"manifests": []}, DOCKER_LIST), Index)
        if media_type != OCI_MANIFEST:
            assert isinstance(read({"manifests": []}, media_type), Index)

    @pytest.mark.parametrize("kind", [OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST, DOCKER_LIST, ""])
    def test_document_that_is_index_and_manifest_is_rejected(self, kind: str) -> None:
        content = {"mediaType": kind, "manifests": [blob()], "config": blob(), "layers": [blob()]}
        with pytest.raises(errors.InvalidAnswer, match="both an index and a manifest"):
            read(content)

    def test_foreign_layers_are_recognized(self) -> None:
        foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        layers = [blob(), blob(urls=["https://elsewhere.test"]), blob(mediaType=foreign)]
        manifest = read({"config": blob(), "layers": layers})
        assert isinstance(manifest, Manifest)
        assert [layer.foreign for layer in manifest.layers] == [False, True, True]

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression.GZIP),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Compression.ZSTD),
            ("application/vnd.oci.image.layer.v1.tar+zstd+encrypted", Compression.ZSTD),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Compression.GZIP),
            ("application/vnd.oci.image.layer.v1.tar+GZIP; x=y", Compression.GZIP),
            ("application/vnd.docker.image.rootfs.diff.tar", Compression.NONE),
            (OCI_ZSTD, Compression.ZSTD),
            ("", Compression.NONE),
        ],
    )
    def test_compression_is_read_from_the_media_type(
        self, kind: str, expected: Compression
    ) -> None:
        assert Layer(DIGEST, 5, kind).compression is expected

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ({"layers": []}, "has no config"),
            ({"config": [], "layers": []}, "has no config"),
            ({"config": blob(), "layers": {}}, "has layers which are not a list"),
            ({"config": blob(), "layers": [5]}, "has layers which are not a list"),
            ({"manifests": "many"}, "has manifests which are not a list"),
            ({"config": blob(size=-1)}, f"has no size for {DIGEST}"),
            ({"config": blob(size=1.5)}, "has no size"),
            ({"config": blob(size=True)}, "has no size"),
            ({"config": blob(size=2**63)}, "has no size"),
            ({"config": blob(digest="sha256:../..")}, "without a digest"),
            ({"config": blob(digest=5)}, "without a digest"),
            ({"manifests": [blob(mediaType=5)]}, "has no media type"),
        ],
    )
    def test_invalid_document_is_rejected_with_its_problem(
        self, content: dict[str, Any], problem: str
    ) -> None:
        with pytest.raises(errors.InvalidAnswer, match=problem) as caught:
            read(content)
        assert str(caught.value).startswith(f"r.test: app@{DIGEST} has ")

    @settings(deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.just(DIGEST),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            *("mediaType", "manifests", "config", "layers", "digest", "size"),
                            *("platform", "os", "architecture", "variant", "annotations"),
                            *("urls", "fsLayers"),
                        ]
                    ),
                    inner,
                )
            ),
        ).filter(lambda value: isinstance(value, dict))
    )
    def test_arbitrary_document_is_read_or_rejected(self, content: Any) -> None:
        with contextlib.suppress(errors.Invalid):
            read(content)

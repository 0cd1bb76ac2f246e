"""Each rule at its threshold, and the properties of the advice for every image."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegate.api.v1alpha1 import imageprefetch_status
from imagegate.domain import advice, status, thresholds
from imagegate.domain.advice import Advice, NodeKind
from imagegate.domain.facts import (
    Attempts,
    GateSpec,
    Image,
    ImageFacts,
    ImageSize,
    LayerFacts,
    NodeState,
)
from imagegate.domain.forecast import Forecast, Rates
from imagegate.domain.status import Failure, Tally
from imagegate.domain.thresholds import Rule, Severity, Unit
from tests.unit.domain.cases import prefetch

GB = 10**9
AMD64 = "linux/amd64"
DIGEST = f"sha256:{'a' * 64}"
PINNED = f"reg.test/llm@{DIGEST}"


def size(*layers: int, compression: str = "zstd") -> ImageSize:
    return ImageSize(
        sum(layers), max(layers, default=0), tuple(LayerFacts(n, compression) for n in layers)
    )


def facts(of: ImageSize, **changes: Any) -> ImageFacts:
    return dataclasses.replace(ImageFacts(digest=DIGEST, sizes={AMD64: of}), **changes)


def rules(of: ImageSize, **options: Any) -> dict[str, Severity]:
    said = advice.advise(PINNED, facts(of), NodeKind(**options))
    return {each.rule: each.severity for each in said}


def split(total: int, largest: float) -> ImageSize:
    """One layer of that share, and the rest in layers too small to matter."""
    fat = int(total * largest)
    parts = 20
    rest = [(total - fat) // parts] * parts
    return ImageSize(total, fat, tuple(LayerFacts(n, "zstd") for n in (*rest, fat)))


class TestThresholds:
    @pytest.mark.parametrize(
        ("bytes_", "expected"),
        [
            (thresholds.GIB - 1, None),
            (thresholds.GIB, Severity.WARNING),
            (4 * thresholds.GIB - 1, Severity.WARNING),
            (4 * thresholds.GIB, Severity.ERROR),
        ],
    )
    def test_large_layer(self, bytes_: int, expected: Severity | None) -> None:
        assert rules(size(bytes_, bytes_, bytes_)).get("large-layer") == expected

    @pytest.mark.parametrize(
        ("share", "expected"),
        [
            (0.399, None),
            (0.4, Severity.WARNING),
            (0.699, Severity.WARNING),
            (0.7, Severity.ERROR),
        ],
    )
    def test_dominating_layer(self, share: float, expected: Severity | None) -> None:
        assert rules(split(10 * GB, share)).get("dominating-layer") == expected

    def test_a_layer_dominates_only_large_images(self) -> None:
        assert "dominating-layer" not in rules(split(thresholds.DOMINANCE_FROM - 1, 1))
        assert "dominating-layer" in rules(split(thresholds.DOMINANCE_FROM, 1))

    @pytest.mark.parametrize(
        ("compression", "rule"), [("gzip", "gzip"), ("none", "uncompressed"), ("zstd", "")]
    )
    def test_compression(self, compression: str, rule: str) -> None:
        third = thresholds.GIB // 3
        below = size(third, third, third, compression=compression)
        above = size(third, third, third + 1, compression=compression)
        assert rules(below) == {}
        assert rules(above) == ({rule: Severity.WARNING} if rule else {})

    @pytest.mark.parametrize(
        ("count", "expected"),
        [(79, None), (80, Severity.WARNING), (119, Severity.WARNING), (120, Severity.ERROR)],
    )
    def test_many_layers(self, count: int, expected: Severity | None) -> None:
        assert rules(size(*[1] * count)).get("many-layers") == expected

    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [(299, None), (300, Severity.WARNING), (599, Severity.WARNING), (600, Severity.ERROR)],
    )
    def test_slow_pull(self, seconds: int, expected: Severity | None) -> None:
        """Half of the time fetching, half unpacking."""
        rates = Rates(node=2.0, unpack=2.0)
        of = size(seconds, compression="gzip")
        assert advice.seconds(of, rates) == seconds
        assert rules(of, rates=rates).get("slow-pull") == expected

    def test_a_slow_pull_is_an_error_from_the_gates_timeout_on(self) -> None:
        assert thresholds.SLOW_PULL.error == GateSpec().timeout

    @pytest.mark.parametrize(
        ("bytes_", "expected"),
        [(399, None), (400, Severity.WARNING), (599, Severity.WARNING), (600, Severity.ERROR)],
    )
    def test_disk_need(self, bytes_: int, expected: Severity | None) -> None:
        """An image needs 3.5 times its compressed bytes, for the compressed and unpacked layers."""
        assert rules(size(bytes_), disk_size=2800).get("disk-need") == expected

    def test_unknown_disks_are_not_checked(self) -> None:
        assert "disk-need" not in rules(size(*[GB] * 1000))

    def test_an_image_without_a_digest_gets_advice(self) -> None:
        (said,) = advice.advise("reg.test/llm:1", facts(size(1)))
        assert (said.rule, said.severity) == ("mutable-tag", Severity.WARNING)
        assert f"@{DIGEST}" in said.remedy
        assert advice.advise(f"reg.test/llm:1@{DIGEST}", facts(size(1))) == ()

    def test_a_missing_platform_is_named_with_the_existing_platforms(self) -> None:
        known = facts(
            size(1), missing=frozenset({"linux/s390x"}), platforms=("linux/amd64", "linux/arm64")
        )
        (said,) = advice.advise(PINNED, known, NodeKind("linux/s390x"))
        assert (said.rule, said.severity) == ("missing-platform", Severity.ERROR)
        assert said.why == "it is not there for linux/s390x, only for linux/amd64, linux/arm64"
        assert advice.advise(PINNED, known, NodeKind(AMD64)) == ()

    def test_every_rule_is_in_the_table_once(self) -> None:
        made = {value.name for value in vars(advice).values() if isinstance(value, Rule)}
        assert [rule.name for rule in thresholds.RULES] == list(
            dict.fromkeys(rule.name for rule in thresholds.RULES)
        )
        assert made == {rule.name for rule in thresholds.RULES}


class TestTheSameContentInDifferentLayers:
    FAT = size(100, 7 * GB - 900, 800, compression="gzip")
    EIGHT = size(*[7 * GB // 8] * 8, compression="gzip")

    def test_a_large_layer_gets_advice_and_eight_equal_layers_do_not(self) -> None:
        fat = {each.rule: each for each in advice.advise(PINNED, facts(self.FAT))}
        assert set(fat) == {"large-layer", "dominating-layer", "gzip"}
        assert fat["large-layer"].severity is Severity.ERROR
        assert "layer 2 of 3 has 7.0 GB" in fat["large-layer"].why
        assert "layer 2 of 3 is 100 % of 7.0 GB" in fat["dominating-layer"].why
        assert rules(self.EIGHT) == {"gzip": Severity.WARNING}

    def test_a_large_layer_takes_longer(self) -> None:
        fat, eight = (advice.seconds(each, Rates()) for each in (self.FAT, self.EIGHT))
        assert fat == pytest.approx(7e9 / 300e6 + 7e9 / 120e6)
        # The first three of the eight layers arrive together. After that, unpacking takes longest.
        assert eight == pytest.approx(3 * 7e9 / 8 / 300e6 + 7e9 / 120e6)

    def test_zstd_is_unpacked_faster_but_not_fetched_faster(self) -> None:
        zstd = size(7 * GB)
        assert advice.seconds(zstd, Rates()) == pytest.approx(7e9 / 300e6 + 7e9 / 360e6)


def test_errors_come_first_and_warnings_in_the_order_of_the_table() -> None:
    many = size(*[1] * 100, 5 * GB, compression="gzip")
    said = advice.advise("reg.test/llm:1", facts(many))
    assert [each.rule for each in said] == [
        "large-layer",
        "dominating-layer",
        "gzip",
        "many-layers",
        "mutable-tag",
    ]
    slow = facts(size(*[GB] * 130, compression="gzip"))
    first, *_ = advice.advise("reg.test/llm:1", slow)
    assert first.rule == "many-layers"


layers = st.lists(
    st.builds(
        LayerFacts,
        st.integers(0, 2**63 - 1),
        st.sampled_from(["gzip", "zstd", "none", "something else"]),
    ),
    max_size=150,
).map(tuple)
sizes = st.builds(ImageSize, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), layers)
platforms = st.text(max_size=2000)
images = st.builds(
    ImageFacts,
    digest=st.text(max_size=300),
    sizes=st.dictionaries(platforms, sizes, max_size=3),
    missing=st.frozensets(platforms, max_size=3),
    platforms=st.lists(platforms, max_size=20).map(tuple),
    problem=st.text(),
)


@given(
    reference=st.text(max_size=512), known=images, platform=platforms, disk=st.integers(0, 2**62)
)
def test_advice_never_raises_and_is_bounded(
    reference: str, known: ImageFacts, platform: str, disk: int
) -> None:
    for asked in (platform, "", *known.sizes, *known.missing):
        said = advice.advise(reference, known, NodeKind(asked, disk))
        assert said == advice.advise(reference, known, NodeKind(asked, disk))
        assert len(said) <= advice.MAX_ADVICE
        assert len({each.rule for each in said}) == len(said)
        assert all(len(str(each)) <= advice.MAX_TEXT for each in said)
        imageprefetch_status.ImageStatus(image="x", advice=tuple(map(str, said)))


def test_advice_is_bounded_for_an_image_with_every_fault() -> None:
    many = [LayerFacts(GB, compression) for compression in ("gzip", "none") for _ in range(100)]
    known = ImageFacts(
        digest="d" * 5000,
        sizes={"p" * 5000: ImageSize(400 * GB, 200 * GB, (*many, LayerFacts(200 * GB, "gzip")))},
        missing=frozenset({"p" * 5000}),
        platforms=("o" * 5000,) * 20,
    )
    said = advice.advise("reg.test/llm:1", known, NodeKind("p" * 5000, advice.DISK))
    assert len(said) == advice.MAX_ADVICE < len(thresholds.RULES)
    assert all(len(str(each)) <= advice.MAX_TEXT for each in said)
    (tag,) = advice.advise("reg.test/llm:1", ImageFacts(digest="d" * 5000))
    assert len(str(tag)) <= advice.MAX_TEXT


@given(of=sizes)
def test_an_estimate_is_never_less_than_its_parts(of: ImageSize) -> None:
    rates = Rates()
    sent = sum(layer.size for layer in of.layers) if of.layers else of.compressed
    took = advice.seconds(of, rates) * (1 + 1e-9)
    assert took >= sent / rates.node
    assert took >= sent / (rates.unpack * advice.FASTER)


class TestStatus:
    def tally(self, failures: int = 0) -> Tally:
        worst = Attempts(count=9, reason="ImageNotFound", message="x" * 5000, image="reg.test/a:1")
        return Tally(
            counts={NodeState.FAILED: failures},
            gated=0,
            failures=tuple(Failure(f"node-{n}.region.example", worst) for n in range(failures)),
        )

    def status(
        self, known: ImageFacts | None, *references: str, failures: int = 0
    ) -> dict[str, Any]:
        wanted = prefetch(images=tuple(Image(reference) for reference in references))
        by_reference = {} if known is None else dict.fromkeys(references, known)
        return status.prefetch_status(
            wanted, self.tally(failures), 0.0, status.Findings(by_reference)
        )

    def advice(self, body: dict[str, Any]) -> list[str]:
        return [text for image in body["images"] for text in image.get("advice", [])]

    def test_the_advice_is_for_the_largest_platform(self) -> None:
        known = facts(size(1), sizes={"linux/arm64": size(GB), AMD64: size(9 * GB)})
        (image,) = self.status(known, PINNED)["images"]
        assert [text.partition(":")[0] for text in image["advice"]] == [
            "large-layer",
            "dominating-layer",
        ]

    def test_unknown_and_good_images_get_no_advice(self) -> None:
        assert self.status(None, "reg.test/llm:1")["images"] == [{"image": "reg.test/llm:1"}]
        (image,) = self.status(facts(size(GB)), PINNED)["images"]
        assert "advice" not in image

    def test_a_dry_run_has_the_same_advice(self) -> None:
        wanted = prefetch(images=(Image(PINNED),))
        known = {PINNED: facts(size(9 * GB))}
        dry = status.dry_run_status(wanted, Forecast(), 0.0, status.Findings(known))
        assert dry["images"] == self.status(known[PINNED], PINNED)["images"]

    @pytest.mark.parametrize("length", [20, 40, 60])
    def test_a_status_of_64_bad_images_stays_under_16_kib(self, length: int) -> None:
        worst = facts(size(*[1] * 130, 90 * GB, compression="gzip"))
        names = [f"reg.test/{n}".ljust(length, "x") for n in range(64)]
        assert len(advice.advise(names[0], worst)) == 6
        body = self.status(worst, *names, failures=10)
        assert len(json.dumps(body, separators=(",", ":"))) < 16 * 1024
        quiet = self.status(worst, *names)
        assert quiet["images"] == body["images"], "failures do not change the images"

    def test_the_worst_advice_comes_first_and_the_rest_is_counted(self) -> None:
        worst = facts(size(*[1] * 130, 90 * GB, compression="gzip"))
        names = [f"reg.test/team/image-{n}:1" for n in range(30)]
        body = self.status(worst, *names)
        (note,) = [text for text in self.advice(body) if "imagegate lint" in text]
        said = [text for text in self.advice(body) if text != note]
        assert len(said) >= 10
        assert {text.partition(":")[0] for text in said} == {"large-layer"}
        assert note.startswith(f"{30 * 6 - len(said)} more about the images")

    def test_all_advice_is_shown_if_there_is_room(self) -> None:
        worst = facts(size(*[1] * 130, 90 * GB, compression="gzip"))
        said = self.advice(self.status(worst, "reg.test/a:1", "reg.test/b:1"))
        assert len(said) == 12

    @pytest.mark.parametrize("length", [80, 500])
    def test_long_references_leave_no_room_for_advice(self, length: int) -> None:
        worst = facts(size(*[1] * 130, 90 * GB, compression="gzip"))
        names = [f"reg.test/{n}".ljust(length, "x") for n in range(64)]
        assert self.advice(self.status(worst, *names)) == []


def shown(rule: Rule, value: float | None) -> str:
    if value is None:
        return "never"
    match rule.unit:
        case Unit.BYTES:
            return f"{value / thresholds.GIB:g} GiB"
        case Unit.SHARE:
            return f"{100 * value:g} %"
        case Unit.LAYERS:
            return f"{value:g}"
        case Unit.SECONDS:
            return f"{value:g} s"
        case Unit.ALWAYS:
            return "always"


def test_the_documentation_has_the_same_table() -> None:
    text = Path(__file__).parents[3].joinpath("docs", "images.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|(.*)\|$", text, re.MULTILINE)
    table = {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}
    assert list(table) == [rule.name for rule in thresholds.RULES]
    for rule in thresholds.RULES:
        _, warning, error, source = table[rule.name]
        assert (warning, error) == (shown(rule, rule.warning), shown(rule, rule.error)), rule.name
        assert source == rule.source, rule.name
    for value in (
        f"from {thresholds.DOMINANCE_FROM // thresholds.GIB} GiB on",
        f"{advice.STREAMS} layers at a time",
        f"{Rates().node / 1e6:g} MB/s",
        f"{Rates().unpack / 1e6:g} MB/s",
        f"{advice.FASTER} times",
    ):
        assert value in text, value


def test_a_text_names_rule_cause_and_remedy() -> None:
    said = Advice("gzip", Severity.WARNING, "it is gzip", "use zstd")
    assert str(said) == "gzip: it is gzip; use zstd"

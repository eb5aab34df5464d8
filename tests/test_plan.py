"""Tests of plan(): sizes and memory of a request from the photo's header, and refusals of what does not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segment.engine.footprint import Footprint
from segment.errors import TooLarge
from segment.formats import Format
from segment.image import Header
from segment.options import Options
from segment.plan import OUTLINE_BYTES, SMALLEST, Constraints, Plan, plan, shows_photo
from segment.resize import fitted_size
from segment.settings import Settings

MIB = 1 << 20
RUN = Footprint(fixed_bytes=20 * MIB, bytes_per_pixel=150.0, bytes_per_instance=50_000.0)


def constraints(mib: float, run: Footprint = RUN) -> Constraints:
    return Constraints(int(mib * MIB), run, fitted_size)


def options(**wishes: Any) -> Options:
    return replace(Options.defaults(Settings()), **wishes)


def jpeg(width: int, height: int, progressive: bool = False) -> Header:
    coefficients = 3 * width * height if progressive else 0  # 2 bytes each; chroma is subsampled 4:2:0
    return Header("JPEG", (width, height), "RGB", 1, False, progressive, coefficients)


def png(width: int, height: int) -> Header:
    return Header("PNG", (width, height), "RGB", 1, False, False, 0)


def planned(header: Header, mib: float, *formats: Format, **wishes: Any) -> Plan:
    return plan(header, options(**wishes), formats or ("png",), constraints(mib))


class TestWhatFits:
    def test_a_typical_photo_is_decoded_once_and_drawn_at_full_size(self) -> None:
        found = planned(jpeg(1280, 960), 200)
        assert (found.render_factor, found.network_size) == (25, (448, 352))
        assert found.picture_size == (1280, 960)

    def test_a_large_jpeg_is_decoded_at_a_reduced_size(self) -> None:
        found = planned(jpeg(4000, 3000), 200)
        assert found.picture_size == (4000, 3000)
        assert prod(jpeg(4000, 3000).decoded_size(found.detect_size)) < 4000 * 3000 / 30
        assert found.detect_bytes < found.output_bytes

    def test_json_never_needs_the_whole_photo(self) -> None:
        found = planned(jpeg(10_000, 10_000), 100, "json")
        assert found.detect_bytes + found.network_bytes < 100 * MIB
        assert found.output_bytes < 20 * MIB

    def test_hundred_megapixels_are_reduced_in_little_memory(self) -> None:
        little, much = planned(jpeg(10_000, 10_000), 150, "jpeg"), planned(jpeg(10_000, 10_000), 4000, "jpeg")
        assert much.picture_size == (10_000, 10_000)
        assert 1000 < little.picture_size[0] < 10_000
        assert little.network_size == much.network_size, "the network's input size must not depend on the output size"

    def test_the_render_factor_is_never_lowered(self) -> None:
        for mib in (100, 200, 400):
            assert planned(jpeg(4000, 3000), mib, render_factor=25).render_factor == 25

    def test_fewer_detections_need_less_memory(self) -> None:
        most, few = planned(jpeg(640, 480), 200), planned(jpeg(640, 480), 200, max_detections=10)
        assert most.network_bytes - few.network_bytes == 90 * 50_000
        chosen = planned(jpeg(640, 480), 200, max_detections=10, classes=("ring",))
        assert chosen.network_bytes == most.network_bytes, "the network finds all 100 before classes are filtered"


class TestAuto:
    def test_takes_the_largest_that_fits(self) -> None:
        found = planned(jpeg(4000, 3000), 120, "json", render_factor=None)
        assert found.detect_bytes + found.network_bytes <= 120 * MIB
        with pytest.raises(TooLarge):
            planned(jpeg(4000, 3000), 120, "json", render_factor=found.render_factor + 3)

    def test_auto_does_not_enlarge_the_photo(self) -> None:
        assert planned(jpeg(320, 320), 4000, "json", render_factor=None).render_factor == 20


class TestRefusals:
    @pytest.mark.parametrize("factor", [60, 256])
    def test_names_the_largest_render_factor(self, factor: int) -> None:
        with pytest.raises(TooLarge, match=f"^Render factor {factor} needs more memory than") as refusal:
            planned(jpeg(1280, 1280), 100, "json", render_factor=factor)
        largest = re.search(r"The largest render factor for this photo is (\d+)[.,]", str(refusal.value))
        assert largest
        assert planned(jpeg(1280, 1280), 100, "json", render_factor=int(largest[1]))
        with pytest.raises(TooLarge):
            planned(jpeg(1280, 1280), 100, "json", render_factor=int(largest[1]) + 2)

    def test_names_the_photo_that_would_fit(self) -> None:
        with pytest.raises(
            TooLarge, match=r"This PNG of 9000 x 9000 pixels needs \d+ MiB of memory; .*100 MiB"
        ) as refusal:
            planned(png(9000, 9000), 100)
        assert re.search(
            r"Send at most about [\d.]+ megapixels as PNG, or a larger baseline JPEG\.$", str(refusal.value)
        )

    def test_error_names_a_progressive_jpeg(self) -> None:
        with pytest.raises(TooLarge, match="This progressive JPEG of 12000 x 9000 pixels"):
            planned(jpeg(12_000, 9_000, progressive=True), 100)

    def test_error_without_free_memory_asks_for_more(self) -> None:
        with pytest.raises(TooLarge, match=r"Give the instance more memory\.$"):
            planned(png(9000, 9000), 28)

    def test_error_names_detail(self) -> None:
        with pytest.raises(TooLarge, match="at detail 4"):
            planned(jpeg(8000, 6000), 62, "json", render_factor=25, detail=4)


@given(
    st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    st.sampled_from(["JPEG", "progressive", "PNG"]),
    st.sets(st.sampled_from(["png", "jpeg", "webp", "json", "ids", "cutouts"]), min_size=1),
    st.one_of(st.none(), st.integers(4, 256)),
    st.one_of(st.none(), st.integers(1, 4)),
    st.integers(20, 2000),
)
def test_a_plan_is_within_the_capacity(
    size: tuple[int, int], kind: str, formats: set[Format], factor: int | None, detail: int | None, mib: int
) -> None:
    """Every plan fits into the memory, enlarges nothing and keeps the render factor and detail of the request."""
    header = png(*size) if kind == "PNG" else jpeg(*size, progressive=kind == "progressive")
    try:
        found = planned(header, mib, *sorted(formats), render_factor=factor, detail=detail)
    except TooLarge:
        return
    assert found.detect_bytes + found.network_bytes <= mib * MIB
    assert found.output_bytes <= mib * MIB
    assert not found.keep or max(found.detect_bytes, found.output_bytes) + found.network_bytes <= mib * MIB
    assert factor in (None, found.render_factor)
    assert detail in (None, found.detail)
    for small, whole in ((found.detect_size, size), (found.picture_size, size)):
        assert all(1 <= n <= most for n, most in zip(small, whole, strict=True))
    if found.picture_size != size:
        assert shows_photo(formats)
        assert max(size) > SMALLEST
        assert found.picture_size[0] / size[0] == pytest.approx(
            found.picture_size[1] / size[1], rel=0.2, abs=2 / min(size)
        )


def test_only_what_the_network_keeps_is_beside_the_result() -> None:
    run = replace(RUN, kept_bytes=0)
    before, after = (
        plan(jpeg(8000, 6000), options(), ("png",), constraints(100, each)).picture_size for each in (RUN, run)
    )
    assert prod(after) > prod(before)
    assert run.kept == 0
    assert replace(RUN, kept_bytes=10 * MIB, fixed_bytes=MIB).kept == MIB
    assert RUN.kept == RUN.fixed_bytes


def test_masks_and_outlines_are_in_the_plan() -> None:
    """Masks are kept until the results are written; those of some models are as large as the network's input."""
    photo = jpeg(400, 400)
    large = replace(constraints(512), mask_bytes=lambda size: 4 * size[0] * size[1])
    few, many = (options(max_detections=count, format="json") for count in (1, 100))
    sizes = [plan(photo, asked, ("json",), large) for asked in (few, many)]
    network = sizes[0].network_size
    for step in ("detect_bytes", "output_bytes"):
        assert getattr(sizes[0], step) < 100 * 4 * network[0] * network[1] <= getattr(sizes[1], step)
    outlined = plan(photo, replace(many, segmentation="polygons"), ("json",), large)
    assert outlined.output_bytes - sizes[1].output_bytes == 100 * OUTLINE_BYTES
    with pytest.raises(TooLarge):
        plan(photo, many, ("json",), replace(constraints(96), mask_bytes=large.mask_bytes))


def test_the_number_of_detections_that_fits_is_named() -> None:
    run = Footprint(fixed_bytes=30 * MIB, bytes_per_pixel=100, bytes_per_instance=MIB)
    tight = Constraints(90 * MIB, run, fitted_size)
    with pytest.raises(TooLarge, match=r"Set max_detections to (\d+) or less") as refused:
        plan(jpeg(640, 480), options(render_factor=16), ("json",), tight)
    named = int(str(refused.value).split("max_detections to ")[1].split()[0])
    assert 20 < named < 60
    assert plan(jpeg(640, 480), options(render_factor=16, max_detections=named), ("json",), tight)
    with pytest.raises(TooLarge):
        plan(jpeg(640, 480), options(render_factor=16, max_detections=named + 1), ("json",), tight)
    with pytest.raises(TooLarge, match="Give the instance more memory"):
        plan(jpeg(640, 480), options(render_factor=16, classes=("star",)), ("json",), tight)


def test_a_smaller_render_factor_or_fewer_detections_are_named() -> None:
    run = Footprint(fixed_bytes=30 * MIB, bytes_per_pixel=100, bytes_per_instance=MIB // 4)
    tight = Constraints(76 * MIB, run, fitted_size)
    with pytest.raises(TooLarge) as refused:
        plan(jpeg(640, 480), options(render_factor=25), ("json",), tight)
    named = re.search(r"is (\d+), or set max_detections to (\d+) or less\.$", str(refused.value))
    assert named
    assert plan(jpeg(640, 480), options(render_factor=int(named[1])), ("json",), tight)
    assert plan(jpeg(640, 480), options(render_factor=25, max_detections=int(named[2])), ("json",), tight)

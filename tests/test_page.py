"""The page, in a real browser against the real service: every control, axe, no foreign request."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from devtools.server import Server
from tests.browser import browser, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium (apt-get install chromium)")

AXE = files("axe_playwright_python") / "axe.min.js"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def page(chrome: Browser, server: Server) -> Iterator[Page]:
    """The page, open; at the end nothing may have gone wrong or elsewhere."""
    context = chrome.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-write", "clipboard-read", "camera"]
    )
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "console", lambda m: wrong.append(m.text) if m.type == "error" and "Failed to load" not in m.text else None
    )
    opened.on(
        "request", lambda r: wrong.append(r.url) if not r.url.startswith((server.url, "blob:", "data:")) else None
    )
    opened.goto(server.url)
    expect(opened.locator("#model-chip")).to_contain_text("shapes")
    yield opened
    context.close()
    assert wrong == []


@pytest.fixture
def result(page: Page, photo: bytes) -> Page:
    """The page after a photo was chosen and segmented."""
    choose(page, photo)
    return page


def choose(page: Page, photo: bytes, name: str = "my photo.jpg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": photo})
    expect(objects(page).first).to_be_visible(timeout=30_000)


def objects(page: Page) -> Locator:
    return page.locator("#objects button")


def slide(page: Page, control: str, value: float) -> None:
    page.locator(control).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }", value
    )


def ink(page: Page) -> list[int]:
    """How many pixels of the layer are drawn on, and the sum of their values."""
    found: list[int] = page.evaluate(
        """() => {
        const layer = document.getElementById('layer');
        const { data } = layer.getContext('2d').getImageData(0, 0, layer.width, layer.height);
        let drawn = 0, sum = 0;
        for (let i = 0; i < data.length; i += 4) {
            if (data[i + 3]) { drawn++; sum += data[i] + 3 * data[i + 1] + 7 * data[i + 2] + data[i + 3]; }
        }
        return [drawn, sum]; }"""
    )
    return found


class TestPhotos:
    def test_chosen(self, result: Page) -> None:
        expect(result.locator("#drop")).to_be_hidden()
        expect(result.locator("#status")).to_contain_text("objects shown. The network saw")
        assert ink(result)[0] > 1000
        assert result.locator("#photo").get_attribute("width") == "1600"

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_examples(self, page: Page, number: int) -> None:
        page.locator(".example").nth(number).click()
        expect(objects(page).first).to_be_visible(timeout=30_000)

    @pytest.mark.parametrize("event", ["drop", "paste"])
    def test_dropped_and_pasted(self, page: Page, photo: bytes, event: str) -> None:
        page.evaluate(
            """([event, text]) => {
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), data = new DataTransfer();
            data.items.add(new File([bytes], 'a.jpg', {type: 'image/jpeg'}));
            const init = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
            const kinds = {drop: DragEvent, paste: ClipboardEvent};
            document.body.dispatchEvent(new kinds[event](event, init)); }""",
            [event, base64.b64encode(photo).decode()],
        )
        expect(objects(page).first).to_be_visible(timeout=30_000)

    def test_from_the_camera(self, page: Page) -> None:
        page.get_by_role("button", name="Use the camera").click()
        expect(page.locator("#camera-dialog")).to_be_visible()
        page.get_by_role("button", name="Take photo").click()
        expect(page.locator("#status")).to_contain_text("shown", timeout=30_000)
        expect(page.locator("#camera-dialog")).to_be_hidden()

    def test_from_a_url(self, page: Page, server: Server) -> None:
        page.get_by_label("Photo URL").fill(server.url + "/scene-1.jpg")
        page.get_by_role("button", name="Fetch").click()
        expect(objects(page).first).to_be_visible(timeout=30_000)
        page.locator(".curl summary").click()
        expect(page.locator("#curl")).to_contain_text("--data-urlencode 'url=" + server.url)

    def test_a_format_the_browser_cannot_show(self, page: Page, photo: bytes) -> None:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(photo)).save(buffer, "TIFF", compression="tiff_lzw")
        choose(page, buffer.getvalue(), "scan.tif")

    def test_exif_orientation(self, page: Page, photo: bytes) -> None:
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.open(io.BytesIO(photo)).save(buffer, "JPEG", exif=exif)
        choose(page, buffer.getvalue())
        assert page.locator("#layer").get_attribute("height") == "1600"

    def test_another(self, result: Page) -> None:
        result.get_by_role("button", name="Another photo").click()
        expect(result.locator("#drop")).to_be_visible()
        expect(result.locator("#result")).to_be_hidden()


class TestProblems:
    def test_no_image(self, page: Page) -> None:
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no image \xff"})
        expect(page.get_by_role("alert")).to_contain_text("Unsupported image")
        expect(page.locator("#progress")).to_be_hidden()

    def test_too_large_is_said_before_it_is_sent(self, page: Page) -> None:
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": bytes(3 << 20)})
        expect(page.get_by_role("alert")).to_contain_text("at most 2.0 MiB")

    def test_urls(self, page: Page, server: Server) -> None:
        page.get_by_label("Photo URL").fill("photo.jpg")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("http://")
        page.get_by_label("Photo URL").fill(server.url + "/gone.jpg")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("404", timeout=10_000)

    def test_no_answer_and_cancel(self, page: Page, photo: bytes) -> None:
        page.route("**/segment?*", lambda route: route.abort())
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo})
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        page.unroute("**/segment?*")
        page.route("**/segment?*", lambda route: None)  # never answered
        page.set_input_files("#file", {"name": "b.jpg", "mimeType": "image/jpeg", "buffer": photo})
        expect(page.locator("#progress")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#progress")).to_be_hidden()
        expect(page.get_by_role("alert")).to_be_hidden()


class TestLayers:
    def test_masks_agree_with_the_answer(self, page: Page, photo: bytes) -> None:
        """What the page decodes from the run lengths has the area and the place that the answer states."""
        with page.expect_response("**/segment?*") as answer:
            choose(page, photo)
        annotations = sorted(answer.value.json()["annotations"], key=lambda a: -a["score"])[:1]
        slide(page, "#score", annotations[0]["score"] - 0.0001)
        for layer in ("Boxes", "Labels"):
            page.get_by_label(layer, exact=True).uncheck()
        drawn = ink(page)[0] * (320 / 1600) ** 2
        assert drawn == pytest.approx(annotations[0]["area"] * objects(page).count(), rel=0.12)

    def test_score_slider_acts_at_once(self, result: Page) -> None:
        asked: list[str] = []
        result.on("request", lambda request: asked.append(request.url))
        counts = []
        for score in (0.05, 0.5, 0.9, 1):
            slide(result, "#score", score)
            counts.append(objects(result).count())
        assert counts[0] > counts[1] >= counts[2] >= counts[3] == 0
        expect(result.locator("#none")).to_be_visible()
        assert asked == []

    def test_filter_by_class(self, result: Page) -> None:
        name = objects(result).first.locator(".name").inner_text()
        before = objects(result).count()
        result.locator("#classes").get_by_label(name, exact=True).uncheck()
        assert 0 < objects(result).count() < before
        assert name not in objects(result).locator(".name").all_inner_texts()

    def test_switches_and_colours(self, result: Page) -> None:
        seen = [ink(result)]
        for layer in ("Masks", "Boxes", "Labels"):
            result.get_by_label(layer, exact=True).uncheck()
            seen.append(ink(result))
        assert seen[0] > seen[1] > seen[2] > seen[3] == [0, 0]
        result.get_by_label("Masks", exact=True).check()
        by_object = ink(result)
        result.get_by_label("Colour by").select_option("class")
        assert ink(result)[0] == by_object[0]
        assert ink(result) != by_object

    def test_hover_and_focus_show_one_alone(self, result: Page) -> None:
        whole = ink(result)
        objects(result).nth(1).hover()
        alone = ink(result)
        assert alone[0] > whole[0]  # all else is darkened
        result.locator("h2").first.hover()
        assert ink(result) == whole
        objects(result).nth(1).focus()
        assert ink(result) == alone

    def test_hover_on_the_photo(self, result: Page) -> None:
        frame = result.locator("#frame").bounding_box()
        assert frame
        for step in range(1, 40):
            right, down = (step % 8 + 0.5) / 8, (step // 8 + 0.5) / 5
            result.mouse.move(frame["x"] + frame["width"] * right, frame["y"] + frame["height"] * down)
            if result.locator("#objects .lit").count():
                break
        expect(result.locator("#objects .lit")).to_have_count(1)
        result.mouse.down()
        result.mouse.up()
        expect(result.locator("#objects [aria-pressed=true]")).to_have_count(1)
        result.keyboard.press("Escape")
        expect(result.locator("#objects [aria-pressed=true]")).to_have_count(0)

    def test_keyboard(self, result: Page) -> None:
        objects(result).first.focus()
        result.keyboard.press("ArrowDown")
        expect(objects(result).nth(1)).to_be_focused()
        result.keyboard.press("Enter")
        expect(objects(result).nth(1)).to_have_attribute("aria-pressed", "true")
        result.keyboard.press("ArrowUp")
        expect(objects(result).first).to_be_focused()

    def test_compare(self, result: Page) -> None:
        slide(result, "#compare", 40)
        assert "40%" in result.locator("#layer").evaluate("e => getComputedStyle(e).clipPath")
        expect(result.locator("#divider")).to_be_visible()


class TestNetwork:
    def test_render_factor_says_what_it_costs_and_asks_again(self, result: Page) -> None:
        expect(result.locator("#cost")).to_contain_text("0.16 megapixels")
        with result.expect_response("**/segment?*render_factor=40*") as answer:
            slide(result, "#factor", 40)
        assert answer.value.ok
        expect(result.locator("#cost")).to_contain_text("0.41 megapixels")
        expect(result.locator("#cost")).to_contain_text("about")

    def test_fit(self, result: Page) -> None:
        with result.expect_response("**/segment?*fit=square*") as answer:
            result.get_by_label("Fit").select_option("square")
        assert answer.value.headers["segment-network-size"] == "400x400"

    def test_detail(self, result: Page) -> None:
        select = result.get_by_label("Detail")
        assert select.locator("option").all_inner_texts()[:3] == ["1", "2", "3"]
        assert select.locator("option").last.inner_text() == "auto"
        with result.expect_response("**/segment?*detail=2*") as answer:
            select.select_option("2")
        assert answer.value.ok
        expect(result.locator("#cost")).to_contain_text("seen 5 times")
        expect(result.locator("#status")).to_contain_text("pixels, 5 times")

    def test_progress(self, page: Page, photo: bytes) -> None:
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        page.route("**/segment?*", hold)
        with page.expect_request("**/segment?*"):
            page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo})
        expect(page.locator("#progress")).to_contain_text("the photo")
        held[0].continue_()
        expect(objects(page).first).to_be_visible(timeout=30_000)
        expect(page.locator("#progress")).to_be_hidden()


class TestTakingAway:
    def download(self, page: Page, button: str) -> tuple[str, bytes]:
        with page.expect_download() as started:
            page.get_by_role("button", name=button).click()
        return started.value.suggested_filename, Path(started.value.path()).read_bytes()

    def test_downloads_are_what_is_seen(self, result: Page) -> None:
        slide(result, "#score", 0.8)
        shown = objects(result).count()
        name, data = self.download(result, "Picture (PNG)")
        assert name == "my photo-overlay.png"
        assert Image.open(io.BytesIO(data)).size == (320, 240)
        name, data = self.download(result, "Data (JSON)")
        assert name == "my photo-detections.json"
        assert len(json.loads(data)["annotations"]) == shown
        name, data = self.download(result, "Cut-outs (ZIP)")
        assert len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == shown

    def test_copy_as_curl(self, result: Page, server: Server) -> None:
        slide(result, "#score", 0.8)
        result.get_by_label("Boxes", exact=True).uncheck()
        result.locator(".curl summary").click()
        result.get_by_role("button", name="Copy as curl").click()
        expect(result.locator("#copy")).to_have_text("Copied")
        copied = result.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("curl -F 'file=@my photo.jpg'")
        for part in (server.url + "/segment?", "min_score=0.8", "boxes=false", "render_factor=25", "-o overlay.png"):
            assert part in copied


class TestEveryone:
    def test_says_what_the_model_knows(self, page: Page) -> None:
        about = page.locator("#about")
        expect(about).to_contain_text("5 shapes and nothing else: circle, square, triangle, star, ring")
        about.get_by_role("link").click()
        expect(page.get_by_role("heading", name="Another model")).to_be_in_viewport()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious(self, chrome: Browser, server: Server, photo: bytes, scheme: Any) -> None:
        context = chrome.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#model-chip")).to_be_visible()
        assert serious(page) == []
        choose(page, photo)
        objects(page).first.click()
        page.locator(".curl summary").click()
        assert serious(page) == []
        page.set_viewport_size({"width": 360, "height": 740})
        assert serious(page) == []
        page.goto(server.url + "/docs")
        assert serious(page) == []
        context.close()

    @pytest.mark.parametrize("width", [320, 390, 768, 1024, 1920])
    def test_nothing_sticks_out(self, page: Page, photo: bytes, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        choose(page, photo)
        page.locator(".curl summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def serious(page: Page) -> list[str]:
    """What axe finds serious or critical, rule and place."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['id']}: {node['target']} {node['failureSummary']}"
        for v in found["violations"]
        if v["impact"] in {"serious", "critical"}
        for node in v["nodes"]
    ]

"""Tests of the page in Chromium with a running server: controls, errors, small screens and accessibility (axe).

The `page` fixture also fails a test in which a script error or a request to another host occurred.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    FilePayload,
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
)
from pycocotools.mask import encode

from devtools.server import Server, serve
from segment.model import EMBEDDED
from segment.output.colours import by_instance
from segment.output.tags import texts as tag_texts
from tests.browser import ARGUMENTS, browser, chromium
from tests.conftest import jpeg
from tests.strategies import detections, solid
from training.shapes import scene

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium (apt-get install chromium)")

DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
AXE = files("axe_playwright_python") / "axe.min.js"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def context(chrome: Browser) -> Iterator[BrowserContext]:
    """The browser of a visitor with a mouse, and an open tab, which keeps the window open between tests."""
    opened = chrome.new_context(
        viewport=DESKTOP,
        permissions=["clipboard-write", "clipboard-read", "camera"],
        reduced_motion="reduce",  # axe must not see colours within a transition
    )
    opened.new_page()
    yield opened
    opened.close()


@contextlib.contextmanager
def faultless_tab(context: BrowserContext, server: Server) -> Iterator[Page]:
    """An empty tab. Fails if a script error, console error or request to another host occurred."""
    wrong: list[str] = []

    def on_error(error: Error) -> None:
        wrong.append(str(error))

    def on_message(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load" not in message.text:
            wrong.append(message.text)

    def on_request(request: Request) -> None:
        if not request.url.startswith((server.url, "blob:", "data:")):
            wrong.append(request.url)

    with context.new_page() as opened:
        opened.on("pageerror", on_error)
        opened.on("console", on_message)
        opened.on("request", on_request)
        yield opened
    assert wrong == []


def open_page(tab: Page, server: Server) -> None:
    tab.goto(server.url)
    expect(tab.locator("#model-chip")).to_contain_text("shapes")  # the first loads the model


@pytest.fixture
def tab(context: BrowserContext, server: Server) -> Iterator[Page]:
    """An empty tab of its own for each test. In a tab that all tests used, Chromium once drew no more frames."""
    with faultless_tab(context, server) as opened:
        yield opened


@pytest.fixture
def page(tab: Page, server: Server) -> Page:
    """The page in a tab of its own."""
    open_page(tab, server)
    return tab


@pytest.fixture(scope="module")
def modules(context: BrowserContext, server: Server) -> Iterator[Page]:
    """A page whose modules tests call. They change nothing on it."""
    with faultless_tab(context, server) as opened:
        open_page(opened, server)
        yield opened


@pytest.fixture(scope="module")
def phone(chrome: Browser) -> Iterator[BrowserContext]:
    """The browser of a phone, with a touch screen."""
    opened = chrome.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    yield opened
    opened.close()


@pytest.fixture
def result(page: Page, photo: bytes) -> Page:
    """The page with a segmented photo."""
    choose(page, photo)
    return page


def choose(page: Page, photo: bytes, name: str = "my photo.jpg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": photo})
    expect(objects(page).first).to_be_visible()
    page.evaluate(f"({DRAWN})().then(() => null)")


def file(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": data}


class HeldRequest:
    """A request of the page that is held back until `release`."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        self._routes: list[Route] = []
        page.route(url, lambda route: self._routes.append(route))  # noqa: PLW0108 (Playwright wants a function)

    def release(self) -> None:
        """Let the request go on, as soon as the page has sent it (what the page shows may be there before)."""
        for _ in range(1200):
            if self._routes:
                return self._routes.pop().continue_()
            self._page.wait_for_timeout(50)
        raise AssertionError("the page sent no request within 60 s")


def objects(page: Page) -> Locator:
    return page.locator("#objects li > button")


def photo_size(page: Page) -> list[int]:
    """Width and height of the photo shown."""
    size: list[int] = page.evaluate("import('/state.js').then(({ state }) => state.current.size)")
    return size


def page_scale(page: Page) -> float:
    """CSS pixels of the frame per pixel of the photo at zoom 1."""
    frame = page.locator("#frame").bounding_box()
    assert frame
    width, height = photo_size(page)
    return min(frame["width"] / width, frame["height"] / height)


def slide(page: Page, control: str, value: float) -> None:
    page.locator(control).evaluate(
        """(e, v) => {
        e.value = v;
        for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); }""",
        value,
    )


DRAWN = """async () => {
    const layer = document.getElementById('layer');
    const late = new Promise((_, fail) => setTimeout(() => fail(Error('No frame was drawn for 60 s.')), 60_000));
    const frame = () => Promise.race([new Promise(requestAnimationFrame), late]);
    const read = () => layer.getContext('2d').getImageData(0, 0, layer.width, layer.height).data;
    for (let before = null, now; ; before = now) {
        for (let i = 0; i < 3; i++) await frame();
        now = read();
        if (before && indexedDB.cmp(before, now) === 0) return now; // compares bytes; a loop takes far more CPU time
    }
}"""
"""The pixels of the layer, as soon as drawing has ended.

A change can take several frames: the size of the frame changes first, then it is drawn again.
"""


def ink(page: Page) -> list[int]:
    """The number of drawn pixels of the layer and the sum of their values, as soon as drawing has ended."""
    found: list[int] = page.evaluate(
        f"""async () => {{
        const pixels = new Uint32Array((await ({DRAWN})()).buffer);
        let drawn = 0, sum = 0;
        for (let i = 0; i < pixels.length; i++) if (pixels[i]) {{ drawn++; sum += pixels[i]; }}
        return [drawn, sum]; }}"""
    )
    return found


class TestPhotos:
    def test_chosen(self, result: Page) -> None:
        expect(result.locator("#drop")).to_be_hidden()
        expect(result.locator("#status")).to_contain_text("objects shown. The network saw")
        assert ink(result)[0] > 1000

    def test_each_example_is_segmented(self, page: Page) -> None:
        for number in range(4):
            page.locator(".example").nth(number).click()
            expect(objects(page).first).to_be_visible()
            page.get_by_role("button", name="Clear").click()

    def test_the_keyboard_goes_on_at_the_photo(self, page: Page) -> None:
        page.locator(".example").first.focus()
        page.keyboard.press("Enter")
        expect(objects(page).first).to_be_visible()
        expect(page.locator("#frame")).to_be_focused()

    def test_a_touch_screen_is_not_asked_to_drop(self, phone: BrowserContext, server: Server) -> None:
        with phone.new_page() as page:
            page.goto(server.url)
            expect(page.locator(".drop-title")).to_contain_text("Add photos", use_inner_text=True)
            expect(page.get_by_text("Drop photos here")).to_be_hidden()

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
        expect(objects(page).first).to_be_visible()

    def test_a_dropped_folder(self, page: Page, photo: bytes, tmp_path: Path) -> None:
        for name in ("b10.jpg", "b9.JPG", "deep/c.jpg", "notes.txt"):
            file = tmp_path / "holiday" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(photo)
        self.drop(page, tmp_path / "holiday")
        expect(page.locator("#photos .name")).to_have_text(["b9.JPG", "b10.jpg", "c.jpg"])
        expect(page.locator("#photos .state").last).to_contain_text("object", timeout=30_000)

    def test_a_dropped_folder_without_photos(self, page: Page, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no photo")
        self.drop(page, tmp_path)
        expect(page.get_by_role("alert")).to_contain_text("No photos")

    def drop(self, page: Page, path: Path) -> None:
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        devtools = page.context.new_cdp_session(page)
        for kind in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 400, "data": data})

    def test_a_photo_is_pasted_into_the_field_of_the_url(self, page: Page, photo: bytes) -> None:
        page.evaluate(
            """(text) => {
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), data = new DataTransfer();
            data.items.add(new File([bytes], 'a.jpg', {type: 'image/jpeg'}));
            const init = {bubbles: true, cancelable: true, clipboardData: data};
            document.getElementById('url').dispatchEvent(new ClipboardEvent('paste', init)); }""",
            base64.b64encode(photo).decode(),
        )
        expect(objects(page).first).to_be_visible(timeout=30_000)

    def test_from_the_camera(self, page: Page) -> None:
        page.get_by_role("button", name="Use the camera").click()
        expect(page.locator("#camera-dialog")).to_be_visible()
        page.get_by_role("button", name="Take photo").click()
        expect(page.locator("#status")).to_contain_text("shown")
        expect(page.locator("#camera-dialog")).to_be_hidden()

    def test_the_camera_fits_a_phone_on_its_side(self, page: Page) -> None:
        page.set_viewport_size({"width": 844, "height": 390})
        page.get_by_role("button", name="Use the camera").click()
        for part in ("#camera-title", "#video", "#shoot"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)

    def test_from_a_url(self, page: Page, server: Server) -> None:
        page.get_by_label("Photo URL").fill(server.url + "/scene-1.jpg")
        page.get_by_role("button", name="Fetch").click()
        expect(objects(page).first).to_be_visible()
        page.locator("#code").click()
        expect(page.locator("#snippet")).to_contain_text("--data-urlencode 'url=" + server.url)

    def test_a_format_the_browser_cannot_show(self, page: Page, photo: bytes) -> None:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(photo)).save(buffer, "TIFF", compression="tiff_lzw")
        choose(page, buffer.getvalue(), "scan.tif")

    def test_exif_orientation(self, page: Page, photo: bytes) -> None:
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.open(io.BytesIO(photo)).save(buffer, "JPEG", exif=exif)
        choose(page, buffer.getvalue())
        assert photo_size(page) == [240, 320]

    def test_clear(self, result: Page) -> None:
        result.get_by_role("button", name="Clear").click()
        expect(result.locator("#drop")).to_be_visible()
        expect(result.locator("#result")).to_be_hidden()


class TestSeveralPhotos:
    def choose(self, page: Page, photos: list[tuple[str, bytes]]) -> None:
        page.set_input_files("#file", [file(name, data) for name, data in photos])

    def entry(self, page: Page, name: str) -> Locator:
        return page.locator("#photos li", has_text=name)

    def test_each_is_segmented_and_listed(self, page: Page, photo: bytes) -> None:
        self.choose(page, [("a.jpg", photo), ("b.jpg", b"no photo"), ("c.jpg", jpeg(scene(50_007, (200, 300))[0]))])
        expect(self.entry(page, "b.jpg")).to_contain_text("Failed")
        expect(self.entry(page, "c.jpg")).to_contain_text("object")
        expect(self.entry(page, "c.jpg").locator("canvas")).to_be_visible()
        assert photo_size(page) == [320, 240]
        expect(page.get_by_role("alert")).to_be_hidden()
        self.entry(page, "b.jpg").locator(".open").click()
        expect(page.get_by_role("alert")).to_contain_text("Unsupported image")
        self.entry(page, "c.jpg").locator(".open").click()
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(self.entry(page, "c.jpg").locator("canvas")).to_be_visible()
        assert photo_size(page) == [200, 300]

    def test_the_entry_of_the_photo_shown_is_in_view(self, page: Page, photo: bytes) -> None:
        page.set_viewport_size(PHONE)
        self.choose(page, [(f"{i}.jpg", photo) for i in range(3)] + [("broken.jpg", b"no photo")])
        expect(self.entry(page, "broken.jpg")).to_contain_text("Failed")
        self.entry(page, "broken.jpg").locator(".open").click()
        expect(self.entry(page, "broken.jpg")).to_be_in_viewport(ratio=1)
        self.entry(page, "0.jpg").locator(".open").click()
        expect(self.entry(page, "0.jpg")).to_be_in_viewport(ratio=1)

    @pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
    def test_names_that_are_too_long_show_their_ends(self, page: Page, photo: bytes, size: ViewportSize) -> None:
        """Names of a camera begin alike, and end with a number."""
        page.set_viewport_size(size)
        self.choose(page, [(f"PXL_20261127_185930{i}.PORTRAIT-{i}.jpg", photo) for i in range(2)])
        for i in range(2):
            entry = self.entry(page, f"PORTRAIT-{i}.jpg")
            entry.scroll_into_view_if_needed()
            name, end = entry.locator(".name").evaluate(
                """(name) => {
                  const walker = document.createTreeWalker(name, NodeFilter.SHOW_TEXT), range = document.createRange();
                  const text = walker.nextNode();
                  range.setStart(text, text.length - 5);
                  range.setEnd(text, text.length);
                  return [name, range].map((part) => part.getBoundingClientRect().toJSON());
                }"""
            )
            assert name["left"] <= end["left"]
            assert end["right"] <= name["right"] + 1

    def test_all_are_asked_again_after_a_change(self, page: Page, photo: bytes) -> None:
        self.choose(page, [("a.jpg", photo), ("b.jpg", photo)])
        expect(self.entry(page, "b.jpg")).to_contain_text("object")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if "render_factor=30" in request.url else None)
        slide(page, "#factor", 30)
        expect(page.locator("#status")).to_contain_text("544")
        expect(page.locator("#progress")).to_be_hidden()
        assert len(asked) == 2

    def test_remove_and_cancel(self, page: Page, photo: bytes) -> None:
        page.route("**/segment?*", lambda route: None)  # never answered
        self.choose(page, [("a.jpg", photo), ("b.jpg", photo), ("c.jpg", photo)])
        expect(page.locator("#progress")).to_contain_text("Photo 1 of 3")
        page.get_by_role("button", name="Remove a.jpg").click()
        expect(page.locator("#progress")).to_contain_text("Photo 1 of 2")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#progress")).to_be_hidden()
        expect(page.locator("#photos .state")).to_have_text(["Cancelled", "Cancelled"])
        page.unroute("**/segment?*")
        self.entry(page, "c.jpg").locator(".open").click()
        expect(self.entry(page, "c.jpg")).to_contain_text("object")


ODD_ANSWERS = [
    "",
    "<html>",
    "null",
    "{}",
    '{"image": {"width": 0, "height": 0}, "annotations": []}',
    '{"image": {"width": 9, "height": 9}, "annotations": [{}]}',
    '{"image": {"width": 9, "height": 9}, "annotations": [{"id": 1, "category_id": 1, "category_name": "ring", '
    '"score": 1, "area": 4, "bbox": [0, 0, 2, 2], "segmentation": {"size": [9, 9], "counts": "11"}}]}',
]


class TestProblems:
    def test_an_unexpected_response_is_reported_and_ends_the_busy_state(self, page: Page, photo: bytes) -> None:
        bodies = iter(ODD_ANSWERS)
        page.route("**/segment?*", lambda route: route.fulfill(content_type="application/json", body=next(bodies)))
        for _ in ODD_ANSWERS:
            page.set_input_files("#file", [file("a.jpg", photo)])
            expect(page.get_by_role("alert")).to_contain_text("Unexpected response")
            expect(page.locator("#progress")).to_be_hidden()
            page.get_by_role("button", name="Clear").click()
            expect(page.get_by_role("alert")).to_be_hidden()
        page.unroute("**/segment?*")
        choose(page, photo)

    def test_a_failed_download_can_be_tried_again(self, result: Page) -> None:
        button = result.locator("[data-download=json]")
        result.route("**/segment?*", lambda route: route.fulfill(status=502, body="<html>"))
        button.click()
        expect(result.get_by_role("alert")).to_contain_text("Error 502")
        expect(button).to_be_enabled()
        result.unroute("**/segment?*")
        with result.expect_download():
            button.click()
        expect(result.get_by_role("alert")).to_be_hidden()

    def test_no_image(self, page: Page, subtests: pytest.Subtests) -> None:
        for size in (DESKTOP, PHONE):
            with subtests.test(**size):
                page.set_viewport_size(size)
                page.set_input_files("#file", [file("a.jpg", b"no image \xff")])
                expect(page.get_by_role("alert")).to_contain_text("Unsupported image")
                expect(page.get_by_role("alert")).to_be_in_viewport(ratio=1)
                expect(page.get_by_role("button", name="Try again")).to_be_hidden()
                expect(page.locator("#progress")).to_be_hidden()
                page.get_by_role("button", name="Clear").click()
                expect(page.get_by_role("alert")).to_be_hidden()

    def test_try_again(self, page: Page, photo: bytes) -> None:
        page.route("**/segment?*", lambda route: route.fulfill(status=503, body="<html>"))
        page.set_input_files("#file", [file("a.jpg", photo), file("b.jpg", photo), file("c.jpg", b"no image")])
        expect(page.locator("#photos .state")).to_have_text(["Failed"] * 3)
        expect(page.get_by_role("alert")).to_contain_text("Error 503")
        assert violations(page) == []
        page.unroute("**/segment?*")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#photos .state")).to_have_text([re.compile("object"), re.compile("object"), "Failed"])
        expect(page.get_by_role("alert")).to_be_hidden()

    def test_a_busy_service_is_asked_again_by_itself(self, page: Page, photo: bytes) -> None:
        asked: list[Route] = []

        def busy_once(route: Route) -> None:
            asked.append(route)
            if len(asked) == 1:
                route.fulfill(status=503, headers={"Retry-After": "2"}, body="<html>")
            else:
                route.continue_()

        page.route("**/segment?*", busy_once)
        page.set_input_files("#file", [file("a.jpg", photo)])
        expect(page.locator("#progress")).to_contain_text(re.compile(r"Trying again in [12] s"))
        expect(objects(page).first).to_be_visible(timeout=30_000)
        assert len(asked) == 2

    def test_cancel_while_the_service_is_busy(self, page: Page, photo: bytes) -> None:
        page.route("**/segment?*", lambda route: route.fulfill(status=503, headers={"Retry-After": "60"}, body=""))
        page.set_input_files("#file", [file("a.jpg", photo)])
        expect(page.locator("#progress")).to_contain_text(re.compile(r"Trying again in [56]\d s"))
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#progress")).to_be_hidden()
        page.unroute("**/segment?*")
        choose(page, photo)

    def test_photos_that_failed_behind_the_one_shown(self, page: Page, photo: bytes) -> None:
        """As when the connection breaks after the first of many photos."""
        choose(page, photo, "a.jpg")
        page.route("**/segment?*", lambda route: route.abort())
        page.set_input_files("#more", [file("b.jpg", photo), file("c.jpg", photo)])
        expect(page.locator("#photos .state").last).to_have_text("Failed")
        page.locator("#photos .open").first.click()
        expect(page.get_by_role("alert")).to_contain_text("2 of 3 photos failed")
        page.unroute("**/segment?*")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#photos .state")).to_have_text([re.compile("object")] * 3, timeout=30_000)
        expect(page.get_by_role("alert")).to_be_hidden()

    def test_photos_that_cannot_be_segmented_are_counted(self, page: Page, photo: bytes) -> None:
        """On a phone, two entries of the list are in view."""
        choose(page, photo, "a.jpg")
        page.set_input_files("#more", [file("b.jpg", b"not a photo"), file("c.jpg", photo)])
        expect(page.locator("#photos .state")).to_have_text([re.compile("object"), "Failed", re.compile("object")])
        page.locator("#photos .open").first.click()
        expect(page.locator("#status")).to_contain_text("1 of 3 photos failed.")
        page.get_by_role("button", name="Remove b.jpg").click()
        expect(page.locator("#status")).not_to_contain_text("failed")

    def test_try_to_show_again(self, page: Page, photo: bytes) -> None:
        """The service converts a TIFF for the browser when it is opened; that request can fail, too."""
        scan = io.BytesIO()
        Image.open(io.BytesIO(photo)).save(scan, "TIFF")
        page.route("**/segment?*format=jpeg*", lambda route: route.fulfill(status=503, body="<html>"))
        page.set_input_files("#file", [file("a.jpg", photo), file("b.tif", scan.getvalue())])
        expect(page.locator("#photos .state").last).to_contain_text("object")
        page.locator("#photos .open").last.click()
        expect(page.get_by_role("alert")).to_contain_text("Error 503")
        page.unroute("**/segment?*format=jpeg*")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#photos li").last.locator("canvas")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()

    def test_the_model_cannot_be_loaded_at_first(self, tab: Page, server: Server, photo: bytes) -> None:
        tab.route("**/model", lambda route: route.fulfill(status=500, body="<html>"))
        tab.goto(server.url)
        expect(tab.get_by_role("alert")).to_contain_text("Error 500")
        tab.set_input_files("#file", [file("a.jpg", photo)])
        expect(tab.locator("#photos .state")).to_have_text("Waiting")
        expect(tab.get_by_role("alert")).to_contain_text("Error 500")
        tab.unroute("**/model")
        tab.get_by_role("button", name="Try again").click()
        expect(objects(tab).first).to_be_visible()
        expect(tab.get_by_role("alert")).to_be_hidden()

    def test_a_photo_that_is_too_large_is_refused_before_it_is_sent(self, page: Page) -> None:
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": bytes(3 << 20)})
        expect(page.get_by_role("alert")).to_contain_text("The limit is 2.0 MiB")

    def test_urls(self, page: Page, server: Server) -> None:
        page.get_by_label("Photo URL").fill("photo.jpg")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("http://")
        page.get_by_label("Photo URL").fill(server.url + "/gone.jpg")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("404")

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
        expect(page.get_by_role("alert")).to_contain_text("1 of 2 photos failed")


class TestLayers:
    def test_masks_agree_with_the_answer(self, page: Page, photo: bytes) -> None:
        """The area that the page draws from the RLE equals the annotation's area in the response."""
        with page.expect_response("**/segment?*") as answer:
            choose(page, photo)
        annotations = sorted(answer.value.json()["annotations"], key=lambda a: -a["score"])[:1]
        slide(page, "#score", annotations[0]["score"] - 0.0001)
        for layer in ("Boxes", "Labels"):
            page.get_by_label(layer, exact=True).uncheck()
        drawn = ink(page)[0] / page_scale(page) ** 2
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
        expect(result.locator("#classes").get_by_label(name, exact=True)).to_be_focused()

    def test_says_why_no_object_is_shown(self, result: Page) -> None:
        for box in result.locator("#classes input").all():
            box.uncheck()
        expect(result.locator("#none")).to_have_text("No class is chosen. Choose one above.")
        slide(result, "#score", 1)
        expect(result.locator("#none")).to_contain_text("No object has this score.")

    def test_classes_below_the_lowest_score_are_not_listed(self, result: Page) -> None:
        slide(result, "#score", 0.05)
        every = result.locator("#classes label").all_inner_texts()
        slide(result, "#score", 0.9)
        names = objects(result).locator(".name").all_inner_texts()
        assert result.locator("#classes label").all_inner_texts() == sorted(set(names))
        assert len(set(names)) < len(every)

    def test_switches_and_colours(self, result: Page) -> None:
        seen = [ink(result)]
        for layer in ("Masks", "Boxes", "Labels"):
            result.get_by_label(layer, exact=True).uncheck()
            seen.append(ink(result))
        assert seen[0] > seen[1] > seen[2] > seen[3] == [0, 0]
        result.get_by_label("Masks", exact=True).check()
        by_object = ink(result)
        result.get_by_label("Colour by").select_option("class")
        assert ink(result)[0] == pytest.approx(by_object[0], rel=0.05), "only the casings of contours may differ"
        assert ink(result) != by_object

    def test_hover_and_focus_show_one_alone(self, result: Page) -> None:
        whole = ink(result)
        objects(result).nth(1).hover()
        alone = ink(result)
        assert alone[0] > whole[0]  # everything else is darkened
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
            ink(result)
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
        result.keyboard.press("End")
        expect(objects(result).last).to_be_focused()

    def test_the_keyboard_stays_where_it_is_when_a_control_disappears(self, page: Page, photo: bytes) -> None:
        page.set_input_files("#file", [file("a.jpg", photo), file("b.jpg", photo)])
        expect(page.locator("#photos .state").last).to_contain_text("object", timeout=30_000)
        page.get_by_role("button", name="Remove a.jpg").press("Enter")
        expect(page.get_by_role("button", name="Remove b.jpg")).to_be_focused()
        page.route("**/segment?*", lambda route: None)  # never answered
        page.set_input_files("#more", [file("c.jpg", photo)])
        page.get_by_role("button", name="Cancel").press("Enter")
        expect(page.locator("#frame")).to_be_focused()
        page.get_by_role("button", name="Remove b.jpg").press("Enter")
        page.get_by_role("button", name="Remove c.jpg").press("Enter")
        expect(page.locator("#file")).to_be_focused()

    def test_the_list_of_objects_is_one_tab_stop(self, result: Page) -> None:
        assert objects(result).count() > 2
        objects(result).nth(1).focus()
        result.keyboard.press("Tab")
        expect(result.locator("#factor")).to_be_focused()
        result.keyboard.press("Shift+Tab")
        expect(objects(result).nth(1)).to_be_focused()

    def test_compare(self, result: Page) -> None:
        before = ink(result)
        slide(result, "#compare", 40)
        assert ink(result) == before  # clipped, not redrawn
        clip = result.locator("#layer").evaluate("e => getComputedStyle(e).clipPath")
        frame = result.locator("#frame").bounding_box()
        assert frame
        left = (frame["width"] - 320 * page_scale(result)) / 2
        divider = result.locator("#divider").evaluate("e => parseFloat(getComputedStyle(e).left)")
        assert divider == pytest.approx(left + 0.4 * 320 * page_scale(result), abs=1)
        assert f"{divider:g}px)" in clip
        expect(result.locator("#divider")).to_be_visible()


TAGS = """() => {
    window.tags = [];
    const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.clearRect = function (...all) { window.tags = []; clearRect.apply(this, all); };
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
        const half = 0.69 * parseFloat(/([\\d.]+)px/.exec(this.font)[1]);
        window.tags.push([x, y - half, x + this.measureText(text).width, y + half]);
        fillText.call(this, text, x, y);
    };
}"""


class TestZoom:
    def test_buttons_keys_and_wheel(self, result: Page) -> None:
        level = result.locator("#zoom-level")
        result.get_by_role("button", name="Zoom in", exact=True).click()
        expect(level).to_have_text("150%")
        result.locator("#frame").focus()
        result.keyboard.press("+")
        expect(level).to_have_text("225%")
        result.keyboard.press("0")
        expect(level).to_have_text("100%")
        result.locator("#frame").hover()
        result.mouse.wheel(0, -300)
        expect(level).to_have_text("200%")
        level.click()
        expect(level).to_have_text("100%")
        expect(result.get_by_role("button", name="Zoom out")).to_be_disabled()

    def test_dragging_moves_the_photo_and_does_not_click(self, result: Page) -> None:
        frame = result.locator("#frame").bounding_box()
        assert frame
        for _ in range(3):
            result.locator("#zoom-in").click()
        before = ink(result)
        x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
        result.mouse.move(x, y)
        result.mouse.down()
        result.mouse.move(x - 150, y - 80, steps=4)
        result.mouse.up()
        result.mouse.move(5, 5)
        assert ink(result) != before
        expect(result.locator("#objects [aria-pressed=true]")).to_have_count(0)
        result.locator("#frame").focus()
        after = ink(result)
        result.keyboard.press("ArrowLeft")
        assert ink(result) != after

    def test_pinch(self, phone: BrowserContext, server: Server, photo: bytes) -> None:
        with phone.new_page() as page:
            page.goto(server.url)
            choose(page, photo)
            box = page.locator("#frame").bounding_box()
            assert box
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            session = phone.new_cdp_session(page)
            for kind, apart in (("Start", 20), ("Move", 40), ("Move", 60), ("End", 0)):
                points = [{"x": x - apart, "y": y}, {"x": x + apart, "y": y}] if apart else []
                session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
            expect(page.locator("#zoom-level")).to_have_text("300%")


class TestOneObject:
    def test_its_row_scrolls_into_view(self, page: Page) -> None:
        page.locator(".example").first.click()
        expect(objects(page).first).to_be_visible()
        expect(objects(page).last).not_to_be_in_viewport()
        page.evaluate(
            "import('/state.js').then((page) => page.pin(page.shown().at(-1)))"
        )  # the same as a click on the photo
        expect(objects(page).last).to_be_in_viewport(ratio=1)
        expect(page.locator(".cutout")).to_be_in_viewport(ratio=0.9)

    def test_its_cut_out_is_saved_and_copied(self, result: Page) -> None:
        objects(result).nth(1).click()
        tools = result.locator(".cutout")
        with result.expect_download() as started:
            tools.get_by_role("button", name="Save").click()
        name = objects(result).nth(1).locator(".name").inner_text()
        assert started.value.suggested_filename == f"my photo-{name}-2.png"
        saved = Image.open(started.value.path())
        opaque = int((np.asarray(saved)[..., 3] > 127).sum())
        area = result.evaluate("import('/state.js').then(({ state }) => state.pinned.area)")
        assert opaque == pytest.approx(area, rel=0.05)
        tools.get_by_role("button", name="Copy").click()
        expect(result.locator("#said")).to_contain_text("Copied the cut-out")
        copied = result.evaluate(
            """async () => {
            const [item] = await navigator.clipboard.read();
            const { width, height } = await createImageBitmap(await item.getType('image/png'));
            return [width, height]; }"""
        )
        assert tuple(copied) == saved.size

    def test_zoom_to_it(self, result: Page) -> None:
        objects(result).nth(1).click()
        result.locator(".cutout").get_by_role("button", name="Zoom in").click()
        expect(result.locator("#zoom-level")).not_to_have_text("100%")

    @pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
    def test_labels_do_not_cover_each_other(self, page: Page, size: ViewportSize) -> None:
        page.evaluate(TAGS)
        page.set_viewport_size(size)
        page.locator(".example").first.click()
        expect(objects(page).first).to_be_visible()
        page.mouse.move(1, 1)  # not over the photo, where hovering shows a single object
        slide(page, "#score", 0.05)
        assert ink(page)
        tags = page.evaluate("window.tags")
        assert len(tags) > 10
        overlapping = [
            (a, b)
            for i, a in enumerate(tags)
            for b in tags[i + 1 :]
            if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        ]
        assert overlapping == []
        width, height = photo_size(page)
        assert sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in tags) <= 0.15 * width * height * page_scale(page) ** 2

    @pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
    def test_long_class_names_are_shortened(self, page: Page, photo: bytes, size: ViewportSize) -> None:
        name = "a circular object seen from above, without a handle"

        def rename(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(
                response=answer,
                body=re.sub('"category_name": ?"[a-z]+"', f'"category_name": "{name}"', answer.text(), count=1),
            )

        page.set_viewport_size(size)
        page.route("**/segment?*", rename)
        choose(page, photo)
        chip = page.locator(".chip").filter(has_text=name)
        shown, room = chip.bounding_box(), page.locator("#classes").bounding_box()
        assert shown
        assert room
        assert shown["x"] + shown["width"] <= room["x"] + room["width"]
        expect(chip).to_have_attribute("title", name)
        texts = page.evaluate("name => import('/tags.js').then(({ tagTexts }) => tagTexts(name, 0.97))", name)
        assert texts == list(tag_texts(name, 0.97))

    def test_labels_leave_the_middle_of_objects_free_and_point_at_them(self, modules: Page) -> None:
        """120 boxes from tiny to large, close together, as in a crowd."""
        placed = modules.evaluate(PLACED)
        assert len(placed) > 20
        assert max(one["covered"] for one in placed) <= 0.1
        assert any(one["line"] for one in placed)
        for one in placed:
            left, top, right, bottom = one["box"]
            if one["line"]:
                x, y = one["line"][2:]
                assert left <= x <= right
                assert top <= y <= bottom
            else:
                assert one["gap"] <= 0.3 * 16

    def test_colours_stand_out_on_the_photo_as_in_the_overlay(self, modules: Page) -> None:
        for ground in ("#c41e20", "#3c3e42", "#808080", "#14a03c", "#ffffff", "#0000a0"):
            chosen = modules.evaluate(COLOURS, ground)
            photo = Image.new("RGB", (320, 240), ground)
            found = detections([solid(20, 20, 100, 200), solid(100, 30, 180, 210), solid(20, 60, 60, 90)], photo.size)
            expected = ["#" + bytes(paint.colour).hex() for paint in by_instance(photo, found)]
            assert chosen == expected, ground

    def test_the_smaller_of_two_instances_is_drawn_on_top(self, modules: Page) -> None:
        for large_first in (True, False):
            red, _, blue = modules.evaluate(ON_TOP, large_first)
            assert (red, blue) == (0, 255), "the colour of the red, larger instance is mixed with that of the blue one"

    def test_specks_have_no_contour(self, modules: Page) -> None:
        mask = np.zeros((60, 80), np.uint8, order="F")
        mask[5:45, 5:60] = 1
        mask[20:22, 20:22] = 0
        mask[50:52, 70:73] = 1
        counts = encode(mask)["counts"].decode()
        strokes = modules.evaluate(STROKES, counts)
        assert strokes == {"edge": True, "hole": False, "speck": False, "filledSpeck": True, "filledHole": False}


PLACED = """async () => {
    const { core, covered, leader, placeTag } = await import("./tags.js");
    const boxes = [], cores = [], taken = [], placed = [];
    for (let i = 0; i < 120; i++) {
        const x = 37 * i % 380, y = 91 * i % 260, width = 4 + i * 13 % 60, height = width * (1 + i % 3 / 2);
        boxes.push([x, y, x + width, y + height]);
    }
    cores.push(...boxes.map(core));
    for (const box of boxes) {
        const tag = placeTag(box, [50, 16], [0, 0, 480, 380], cores, taken);
        if (!tag) continue;
        taken.push(tag);
        const gap = Math.max(box[0] - tag[2], tag[0] - box[2], box[1] - tag[3], tag[1] - box[3]);
        placed.push({ box, gap, line: leader(tag, box), covered: Math.max(...cores.map((one) => covered(tag, one))) });
    }
    return placed;
}"""
ON_TOP = """async (largeFirst) => {
    const { drawObjects } = await import("./drawing.js");
    const canvas = Object.assign(document.createElement("canvas"), { style: "width: 200px; height: 200px" });
    document.body.append(canvas);
    const object = (bbox, colour) => {
        const path = new Path2D();
        path.rect(...bbox);
        return { bbox, path, outline: path, colour };
    };
    const large = object([10, 10, 180, 180], "#ff0000"), small = object([60, 60, 60, 60], "#0000ff");
    const options = {
        view: { scale: 1, x: 0, y: 0 }, size: [200, 200], layers: { masks: true, boxes: false, labels: false },
        paintOf: ({ colour }) => ({ colour, clear: true }),
    };
    drawObjects(canvas, largeFirst ? [large, small] : [small, large], options);
    const ratio = canvas.width / 200, pixel = canvas.getContext("2d").getImageData(90 * ratio, 90 * ratio, 1, 1);
    canvas.remove();
    return [...pixel.data].slice(0, 3);
}"""
COLOURS = """async (ground) => {
    const { chooseColours } = await import("./colours.js"), { state } = await import("./state.js");
    const canvas = Object.assign(document.createElement("canvas"), { width: 320, height: 240 });
    const context = canvas.getContext("2d");
    context.fillStyle = ground;
    context.fillRect(0, 0, 320, 240);
    const objects = [[20, 20, 80, 180], [100, 30, 80, 180], [20, 60, 40, 30]].map((bbox) => {
        const path = new Path2D();
        path.rect(...bbox);
        return { bbox, path, category_id: 1 };
    });
    chooseColours(objects, canvas, [320, 240], state.model.palette);
    return objects.map((object) => object.colours.instance.colour);
}"""
STROKES = """async (counts) => {
    const { maskPaths } = await import("./masks.js"), { path, outline } = maskPaths({ size: [60, 80], counts }, 1);
    const context = document.createElement("canvas").getContext("2d");
    context.lineWidth = 2;
    const onLine = (x, y) => context.isPointInStroke(outline, x, y);
    const inside = (x, y) => context.isPointInPath(path, x, y, "evenodd");
    return {
        edge: onLine(5, 20), hole: onLine(20, 21), speck: onLine(70, 51),
        filledSpeck: inside(71, 51), filledHole: inside(21, 21),
    };
}"""


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
        expect(result.locator("#cost")).to_contain_text("× 5")
        expect(result.locator("#status")).to_contain_text("pixels, 5 times")

    def test_progress(self, page: Page, photo: bytes) -> None:
        held = HeldRequest(page, "**/segment?*")
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo})
        expect(page.locator("#progress")).to_contain_text("the photo")
        held.release()
        expect(objects(page).first).to_be_visible()
        expect(page.locator("#progress")).to_be_hidden()


class TestTakingAway:
    def download(self, page: Page, button: str) -> tuple[str, bytes]:
        with page.expect_download() as started:
            page.get_by_role("button", name=button, exact=True).click()
        return started.value.suggested_filename, Path(started.value.path()).read_bytes()

    def test_downloads_are_what_is_seen(self, result: Page) -> None:
        slide(result, "#score", 0.8)
        shown = objects(result).count()
        name, data = self.download(result, "Picture PNG")
        assert name == "my photo-overlay.png"
        assert Image.open(io.BytesIO(data)).size == (320, 240)
        name, data = self.download(result, "Data JSON")
        assert name == "my photo-detections.json"
        assert len(json.loads(data)["annotations"]) == shown
        name, data = self.download(result, "Cut-outs ZIP")
        assert len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == shown

    @pytest.mark.parametrize("language", ["curl", "JavaScript", "Python"])
    def test_code_runs_as_it_is_written(self, result: Page, photo: bytes, tmp_path: Path, language: str) -> None:
        program = {"curl": ["sh"], "JavaScript": ["node", "--input-type=module"], "Python": [sys.executable, "-"]}
        if shutil.which(program[language][0]) is None:
            pytest.skip(f"needs {program[language][0]}")
        slide(result, "#score", 0.8)
        shown = objects(result).count()
        result.locator("#code").click()
        result.get_by_label(language, exact=True).check()

        def run(result_format: str) -> Path:
            """Run the code for a format and return the file that it wrote."""
            folder = tmp_path / result_format
            folder.mkdir()
            (folder / "my photo.jpg").write_bytes(photo)
            result.locator("#snippet-format").select_option(label=result_format)
            code = result.locator("#snippet").inner_text()
            subprocess.run(program[language], input=code, text=True, cwd=folder, check=True, timeout=600)
            (made,) = set(folder.iterdir()) - {folder / "my photo.jpg"}
            return made

        assert Image.open(run("picture")).size == (320, 240)
        assert len(json.loads(run("data").read_bytes())["annotations"]) == shown
        assert len(zipfile.ZipFile(run("cut-outs")).namelist()) == shown

    def test_copy_as_curl(self, result: Page, server: Server) -> None:
        slide(result, "#score", 0.8)
        result.get_by_label("Boxes", exact=True).uncheck()
        result.locator("#code").click()
        result.get_by_role("button", name="Copy", exact=True).click()
        expect(result.locator("#copy")).to_have_text("Copied")
        copied = result.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("curl --fail-with-body \\\n  -F 'file=@\"my photo.jpg\"'")
        for part in (server.url + "/segment?", "min_score=0.8", "boxes=false", "render_factor=25", "-o overlay.png"):
            assert part in copied


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with another model, which accepts large uploads."""
    own = tmp_path_factory.mktemp("other") / "own.onnx"
    shutil.copy(EMBEDDED, own)
    with serve(SEGMENT_MODEL=str(own), SEGMENT_MAX_UPLOAD="32Mi", SEGMENT_MEMORY="2Gi") as running:
        yield running


@pytest.fixture(scope="module")
def large(context: BrowserContext, other: Server) -> Iterator[Page]:
    """A page with a file input, served by a server that accepts large uploads."""
    with context.new_page() as page:
        page.goto(other.url)
        page.evaluate(
            """() => { const input = document.createElement('input');
            input.type = 'file'; input.id = 'upload'; document.body.append(input); }"""
        )
        yield page


class TestFormData:
    """Multipart uploads as a browser encodes a form, with its own boundary and line ends."""

    @pytest.mark.parametrize("size", [1 << 10, 100_000, 1_000_003, 30_000_000])
    @pytest.mark.parametrize("kind", ["random", "newlines", "photo"])
    def test_uploads_arrive_whole(self, large: Page, photo: bytes, tmp_path: Path, size: int, kind: str) -> None:
        rest = np.random.default_rng(size).bytes(size) if kind != "newlines" else b"\r\n--" * (size // 4)
        (tmp_path / "photo.jpg").write_bytes(
            (photo + rest) if kind == "photo" else rest
        )  # data after the end of a JPEG is allowed
        large.set_input_files("#upload", tmp_path / "photo.jpg")
        status, answer = large.evaluate(
            """async () => {
            const form = new FormData();
            form.append('file', document.getElementById('upload').files[0]);
            form.append('format', 'json');
            const response = await fetch('/segment', {method: 'POST', body: form});
            return [response.status, await response.json()]; }"""
        )
        if kind == "photo":
            assert (status, answer["image"]["width"]) == (200, 320)
        else:
            assert (status, answer["title"]) == (415, "Unsupported image")


class TestDocs:
    def test_try_it(self, tab: Page, server: Server, photo: bytes) -> None:
        tab.goto(server.url + "/docs")
        tab.set_input_files("#try-file", [file("a.jpg", photo)])
        tab.get_by_role("button", name="Send").click()
        expect(tab.locator("#try-status")).to_contain_text("200")
        expect(tab.locator("#try-headers")).to_contain_text("segment-instances")
        expect(tab.locator("#try-text")).to_contain_text('"annotations"')
        tab.locator("#try-options").fill("format=png")
        tab.get_by_role("button", name="Send").click()
        expect(tab.locator("#try-picture")).to_be_visible()
        with tab.expect_download() as download:
            tab.get_by_role("link", name="Save the response").click()
        assert download.value.suggested_filename == "overlay.png"
        tab.locator("#try-options").fill("min_score=2")
        tab.get_by_role("button", name="Send").click()
        expect(tab.locator("#try-status")).to_contain_text("400")
        expect(tab.locator("#try-text")).to_contain_text("a number from 0 to 1")
        expect(tab.locator("#try-picture")).to_be_hidden()

    def test_the_response_is_in_view_on_a_phone(self, tab: Page, server: Server, photo: bytes) -> None:
        tab.set_viewport_size(PHONE)
        tab.goto(server.url + "/docs")
        tab.set_input_files("#try-file", [file("a.jpg", photo)])
        tab.get_by_role("button", name="Send").click()
        expect(tab.locator("#try-status")).to_contain_text("200", timeout=30_000)
        expect(tab.locator("#try-headers")).to_be_in_viewport()

    def test_tables_fit_a_phone(self, tab: Page, server: Server) -> None:
        tab.set_viewport_size(PHONE)
        tab.goto(server.url + "/docs#option-detail")
        expect(tab.locator("#option-detail td").last).to_be_in_viewport(ratio=1)
        wide = "(tables) => tables.filter((table) => table.scrollWidth > table.clientWidth + 1).length"
        assert tab.locator(".scroll").evaluate_all(wide) == 0


class TestLoading:
    def test_says_that_the_model_is_being_loaded_and_takes_photos(
        self, tab: Page, server: Server, photo: bytes
    ) -> None:
        held = HeldRequest(tab, "**/model")
        tab.goto(server.url)
        expect(tab.locator("#loading")).to_contain_text("Loading the model")
        tab.set_input_files("#file", [file("a.jpg", photo)])
        expect(tab.locator("#photos .state")).to_have_text("Waiting")
        held.release()
        expect(objects(tab).first).to_be_visible()
        expect(tab.locator("#loading")).to_be_hidden()


class TestAnotherModel:
    def test_has_neither_the_demos_examples_nor_its_name(self, context: BrowserContext, other: Server) -> None:
        with context.new_page() as page:
            page.goto(other.url)
            expect(page.locator("#model-chip")).to_contain_text("own")
            expect(page.locator("#examples")).to_be_hidden()
            expect(page.locator("#demo")).to_be_hidden()


class TestEveryone:
    def test_shows_the_classes_of_the_model(self, page: Page) -> None:
        expect(page.locator("#demo")).to_contain_text("Demo: five shapes.")
        expect(page.locator("#demo")).to_contain_text("only detects circle, square, triangle, star and ring.")
        page.locator("#model-chip").click()
        about = page.locator("#about")
        expect(about).to_contain_text("circle, square, triangle, star, ring")
        about.get_by_role("link").click()
        expect(page.get_by_role("heading", name="Another model")).to_be_in_viewport()

    @pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
    def test_axe_finds_nothing(self, page: Page, server: Server, photo: bytes, size: ViewportSize) -> None:
        def check() -> None:
            assert violations(page) == []
            page.emulate_media(color_scheme="dark")  # in page.css, only colours depend on it
            assert violations(page, "cat.color") == []
            page.emulate_media(color_scheme="light")

        page.set_viewport_size(size)
        page.emulate_media(color_scheme="light")
        expect(page.locator("#demo")).to_be_visible()
        check()
        choose(page, photo)
        objects(page).first.click()
        check()
        for section in page.locator("#sections button").all():
            if section.is_visible():
                section.click()
                check()
        page.locator("#code").click()
        check()
        page.locator("#code-close").click()
        page.goto(server.url + "/docs")
        check()

    def test_everything_is_in_reach_without_scrolling(
        self, page: Page, photo: bytes, subtests: pytest.Subtests
    ) -> None:
        sizes: dict[str, ViewportSize] = {
            "desktop": DESKTOP,
            "laptop": {"width": 1366, "height": 650},
            "phone": PHONE,
            "phone on its side": {"width": 844, "height": 390},
            "desktop at 200 %": {"width": 640, "height": 400},
        }
        for name, size in sizes.items():
            with subtests.test(name):
                page.set_viewport_size(size)
                choose(page, photo)
                self.check_reach(page, size["height"])
                if (button := page.locator("#sections [data-section=result]")).is_visible():
                    button.click()
                page.get_by_role("button", name="Clear").click()
                expect(page.locator("#drop")).to_be_visible()

    def check_reach(self, page: Page, height: int) -> None:
        controls = {
            "result": ["#score", "#classes", "#objects li:first-child > button"],
            "view": ["#masks", "#boxes", "#labels", "#colours", "#compare"],
            "network": ["#factor", "#fit", "#detail", "#cost"],
            "save": ["[data-download=png]", "[data-download=json]", "[data-download=cutouts]", "#code"],
        }
        for section, selectors in controls.items():
            button = page.locator(f"#sections [data-section={section}]")
            if button.is_visible():
                expect(button).to_be_in_viewport(ratio=1)
                button.click()
            for selector in ["#frame", "#more + *, label:has(#more)", "#zoom-in", *selectors]:
                expect(page.locator(selector).first).to_be_in_viewport(ratio=1)
        shown_at = page.evaluate("scrollY")  # a low window has only the header and the note above the photo
        page.evaluate("scrollTo(0, 5000)")
        assert page.evaluate("scrollY") == shown_at
        assert shown_at == 0 or height < 560

    def test_the_page_does_not_scroll_sideways(self, page: Page, photo: bytes) -> None:
        def check() -> None:
            for width in (320, 390, 768, 1024, 1920):
                page.set_viewport_size({"width": width, "height": 800})
                page.wait_for_function("(width) => innerWidth === width", arg=width)
                assert page.evaluate("document.documentElement.scrollWidth") <= width

        check()
        choose(page, photo)
        check()

    def test_the_dialog_of_the_code_fits_a_small_phone(self, result: Page) -> None:
        result.set_viewport_size({"width": 320, "height": 568})
        result.locator("[data-section=save]:visible").click()
        result.locator("#code").click()
        dialog = result.locator("#code-dialog")
        assert dialog.evaluate("(dialog) => dialog.scrollWidth <= dialog.clientWidth")
        for control in ("[value=python]", "#snippet-format", "#code-close", "#copy"):
            expect(dialog.locator(control)).to_be_in_viewport(ratio=1)

    def test_larger_text(self, chrome: Browser, server: Server, photo: bytes, tmp_path: Path) -> None:
        settings = tmp_path / "Default" / "Preferences"
        settings.parent.mkdir()
        settings.write_text(json.dumps({"webkit": {"webprefs": {"default_font_size": 32}}}))
        context = chrome.browser_type.launch_persistent_context(
            tmp_path, executable_path=chromium(), args=ARGUMENTS, viewport=PHONE
        )
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator(".example").first).to_be_visible()
        assert page.locator("#score").evaluate("getComputedStyle(document.body).fontSize") == "32px"
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        choose(page, photo)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        context.close()

    def test_all_modules_are_requested_at_once(self, page: Page) -> None:
        """On a slow network, one request after another for the modules that modules import takes seconds."""
        links = page.locator("link[rel=modulepreload]").evaluate_all("(all) => all.map((link) => link.href)")
        loaded = page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
        assert {url for url in loaded if url.endswith(".js")} - set(links) == {f"{page.url}page.js"}
        assert set(links) <= set(loaded)

    def test_print_shows_the_photo_and_all_objects(self, result: Page) -> None:
        slide(result, "#score", 0.05)
        result.emulate_media(media="print")
        for control in ("#network", "#save", "#view", "#photos-bar", ".zoom", "#sections", "#score"):
            expect(result.locator(control)).to_be_hidden()
        expect(result.locator("#photo")).to_be_visible()
        for part in ("#objects", "#result", "#main"):
            assert result.locator(part).evaluate("(element) => getComputedStyle(element).overflow") == "visible"

    def test_forced_colours_show_what_is_chosen(self, result: Page) -> None:
        result.emulate_media(forced_colors="active")
        objects(result).first.click()
        for chosen in ('#objects [aria-pressed="true"]', "#photos li"):
            assert result.locator(chosen).evaluate("(element) => getComputedStyle(element).outlineStyle") == "solid"


def violations(page: Page, tag: str = "") -> list[str]:
    """The violations found by axe, of rules with this tag: rule, element and suggested fix."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    options = {"resultTypes": ["violations"]} | ({"runOnly": [tag]} if tag else {})
    found = page.evaluate("(options) => axe.run(document, options)", options)
    return [f"{v['id']}: {n['target']} {n['failureSummary']}" for v in found["violations"] for n in v["nodes"]]

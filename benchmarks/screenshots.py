"""Take the README's pictures of the page: `python -m benchmarks.screenshots` (needs Chromium).

Two states: a photograph of coins on a wide screen, with the class circle alone as in docs/coins.jpg, and one selected
object on a phone in dark mode.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from devtools.server import serve
from tests.browser import browser

FOLDER = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Write docs/page-result.png and docs/page-phone.png."""
    with serve() as server, browser() as running:
        desktop = _open(running, server.url, {"width": 1280, "height": 800}, dark=False)
        _segment(desktop, 3)
        for name in ("ring", "star"):
            desktop.get_by_role("checkbox", name=name).uncheck()
        _shoot(desktop, "page-result")
        phone = _open(running, server.url, {"width": 390, "height": 844}, dark=True)
        _segment(phone, 2)
        phone.locator("#objects li > button").first.click()
        _shoot(phone, "page-phone")


def _open(running: Browser, url: str, size: ViewportSize, *, dark: bool) -> Page:
    page = running.new_context(viewport=size, color_scheme="dark" if dark else "light").new_page()
    page.goto(url)
    expect(page.locator("#model-chip, #demo").last).to_be_visible(timeout=60_000)
    return page


def _segment(page: Page, example: int) -> None:
    page.locator(".example").nth(example).click()
    expect(page.locator("#objects li > button").first).to_be_visible(timeout=60_000)
    expect(page.locator("#progress")).to_be_hidden()


def _shoot(page: Page, name: str) -> None:
    """Save the visible part. A palette would halve the size of the file, but dithers the edges of the controls."""
    page.mouse.move(0, 0)  # the control that was clicked last has another colour below the mouse
    page.wait_for_timeout(300)  # until the colour has changed
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

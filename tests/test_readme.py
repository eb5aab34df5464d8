"""The documentation: settings, options, files and headings that it names exist, and its Python code runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from PIL import Image

from devtools.server import ROOT
from segment import options
from segment.extras import EXTRAS
from segment.model import Model
from segment.settings import Settings, describe
from training.shapes import scene

DOCS = ROOT / "docs"
HTTP, LIBRARY, SETTINGS = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("http.md", "library.md", "settings.md")
)
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "deploy" / "README.md", ROOT / "benchmarks/results/README.md"]


def test_the_settings_table_matches_the_settings() -> None:
    table = re.findall(r"^\| `(SEGMENT_\w+)` \| (.*?) \| (.*) \|$", SETTINGS, re.MULTILINE)
    assert table == [(name, default, about) for name, default, about in describe()]


def test_the_options_table_matches_the_options() -> None:
    table = HTTP.partition("| option | default | |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(options.describe(Settings()))


def test_the_options_table_of_the_page_of_the_package_matches_the_library() -> None:
    table = LIBRARY.partition("| option | default | |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w[\w.]*) \|", table, re.MULTILINE)
    defaults = options.Options.defaults(Settings())
    own = inspect.signature(Model.__call__).parameters.keys() - {"self", "photo"}
    assert dict(rows) == {name: str(getattr(defaults, name) or "all") for name in own}


def test_the_page_of_the_package_has_no_relative_links() -> None:
    """A package index shows it without the repository."""
    assert all(target.startswith(("https://", "#")) for target in re.findall(r"\]\(([^)]+)", LIBRARY))


def test_the_page_of_the_package_names_every_extra() -> None:
    table = LIBRARY.partition("| extra | for |")[2]
    assert {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    } == {*EXTRAS.values()}


def test_the_python_code_on_the_page_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(scene(50_004, (640, 480))[0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL):
        exec(code, names)
    assert names["results"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for link in links:
        if not link.startswith(("http://", "https://")):
            target, _, heading = link.partition("#")
            file = page.parent / target if target else page
            assert file.exists(), link
            assert not heading or heading in _anchors(file), link


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}

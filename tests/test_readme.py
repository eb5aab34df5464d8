"""Settings, files and links named in README.md exist."""

from __future__ import annotations

import re
from pathlib import Path

from segment.settings import describe

README = Path("README.md").read_text(encoding="utf-8")


def test_the_settings_table_matches_the_settings() -> None:
    table = re.findall(r"^\| `(SEGMENT_\w+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    assert table == [(name, default, about) for name, default, about in describe()]


def test_every_named_file_exists() -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", README):
        assert Path(target).exists(), target


def test_links_to_headings_exist() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings

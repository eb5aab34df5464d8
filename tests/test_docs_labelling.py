"""The settings, files, headings, configs and commands in docs/labelling.md exist and are valid."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from devtools.server import ROOT
from segment import commands
from segment.__main__ import main
from segment.labelling import labelstudio
from segment.settings import describe

GUIDE = (ROOT / "docs" / "labelling.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks in a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", GUIDE, re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def test_its_settings_are_there() -> None:
    assert set(re.findall(r"SEGMENT_[A-Z_]+[A-Z]", GUIDE)) <= {name for name, _, _ in describe()}


def test_its_files_and_headings_are_there() -> None:
    headings = {title.lower().replace("'", "").replace(" ", "-") for title in re.findall(r"^#+ (.*)$", GUIDE, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", GUIDE)) <= headings
    for name in re.findall(r"(?:tests|deploy)/[\w/]+\.\w+", GUIDE):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((?!#)([^)]+)\)", GUIDE):
        assert (ROOT / "docs" / name).exists(), name


def test_its_labelling_config() -> None:
    (config,) = blocks("xml")
    (control,) = labelstudio.controls(config, (ROOT / "segment" / "zoo" / "coco.txt").read_text().splitlines())
    assert sorted(control.labels.values()) == ["Vehicle", "Vehicle", "Vehicle", "person"]


def test_its_yaml() -> None:
    (override,) = blocks("yaml")
    services = yaml.safe_load(override)["services"]
    assert services["cvat_server"] == services["cvat_worker_annotation"]
    assert services["cvat_server"]["environment"]["CVAT_NUCLIO_INVOKE_METHOD"] == "dashboard"


def test_its_commands_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("image", "cvat"):
        monkeypatch.setattr(commands, name, lambda arguments: 0)
    lines = [line for text in blocks("sh") for line in text.replace("\\\n", " ").splitlines()]
    given = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m segment")]
    assert len(given) >= 3
    for command in given:
        assert main(command[3 : command.index(">") if ">" in command else None]) == 0

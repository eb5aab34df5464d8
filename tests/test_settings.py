"""Tests of Settings.from_environment: parsing of environment variables, and the messages for invalid values."""

from __future__ import annotations

import dataclasses
import re

import pytest

from segment.errors import SettingsError
from segment.settings import Settings, describe
from segment.values import MIB


def test_an_empty_environment_is_the_defaults() -> None:
    assert Settings.from_environment({"PATH": "/bin", "SEGMENT_FIT": " "}) == Settings()


def test_every_kind_of_value() -> None:
    settings = Settings.from_environment(
        {
            "SEGMENT_RENDER_FACTOR": "auto",
            "SEGMENT_MEMORY": "512Mi",
            "SEGMENT_MAX_UPLOAD": "1.5MB",
            "SEGMENT_FETCH_PRIVATE": "True",
            "SEGMENT_CORS_ORIGINS": "https://a.example, https://b.example",
            "SEGMENT_OUTPUT_FORMATS": "json,cutouts",
            "SEGMENT_MIN_SCORE": "0.3",
        }
    )
    assert (settings.render_factor, settings.memory, settings.max_upload) == (None, 512 * MIB, 1_500_000)
    assert (settings.fetch_private, settings.min_score) == (True, 0.3)
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.output_formats == ("json", "cutouts")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SEGMENT_RENDER_FACTOR", "0", "auto or a whole number from 4 to 256"),
        ("SEGMENT_FIT", "wide", "one of aspect, square"),
        ("SEGMENT_MEMORY", "lots", "512Mi"),
        ("SEGMENT_FETCH_PRIVATE", "maybe", "true or false"),
        ("SEGMENT_OUTPUT_FORMATS", "gif", "one or more of png"),
        ("SEGMENT_MIN_SCORE", "50%", "a number from 0 to 1"),
    ],
)
def test_invalid_value_is_refused_with_name_value_and_range(name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"{name} is {value!r}; it must be ")) as raised:
        Settings.from_environment({name: value})
    assert expected in str(raised.value)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"Unknown setting SEGMENT_RENDER\. Valid settings: SEGMENT_MODEL,"):
        Settings.from_environment({"SEGMENT_RENDER": "25"})


def test_every_setting_is_described() -> None:
    rows = describe()
    assert [name for name, _, _ in rows] == ["SEGMENT_" + f.name.upper() for f in dataclasses.fields(Settings)]
    assert all(about.endswith(".") for _, _, about in rows)
    assert Settings.from_environment({name: default for name, default, _ in rows}) == Settings()

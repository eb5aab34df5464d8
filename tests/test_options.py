"""Options are parsed from text to a frozen value, or refused with an error that names the option."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segment.errors import OptionError
from segment.options import Options, describe
from segment.settings import Settings

SETTINGS = Settings()


def test_without_options_the_settings_apply() -> None:
    assert Options.parse({}, SETTINGS) == Options.defaults(SETTINGS)
    assert Options.parse({}, Settings(min_score=0.7, fit="square")).min_score == 0.7


def test_values_are_parsed() -> None:
    words = {"render_factor": "auto", "fit": "SQUARE", "classes": " cat , dog", "masks": "off", "min_score": " 0.25 "}
    options = Options.parse(words, SETTINGS)
    assert (options.render_factor, options.fit, options.classes) == (None, "square", ("cat", "dog"))
    assert (options.masks, options.boxes, options.min_score) == (False, True, 0.25)


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("render_factor", "3", "auto or a whole number from 4 to 256"),
        ("render_factor", "25.0", "whole number"),
        ("render_factor", "2_5", "whole number"),
        ("render_factor", "٢٥", "whole number"),
        ("min_score", "1.01", "a number from 0 to 1"),
        ("min_score", "nan", "a number from 0 to 1"),
        ("max_detections", "101", "a whole number from 1 to 100"),
        ("fit", "wide", "one of aspect, square"),
        ("format", "gif", "png, jpeg, webp, json"),
        ("masks", "maybe", "true or false"),
        ("classes", " , ", "class names"),
        ("colour", "red", "Unknown option 'colour'. Valid options: render_factor, fit"),
    ],
)
def test_errors_contain_option_value_and_valid_values(name: str, word: str, expected: str) -> None:
    with pytest.raises(OptionError) as raised:
        Options.parse({name: word}, SETTINGS)
    assert raised.value.name == name
    assert expected in str(raised.value)
    assert name in str(raised.value)


def test_every_field_is_an_option() -> None:
    assert {field.name for field in dataclasses.fields(Options)} == set(describe(SETTINGS))


@given(st.sampled_from(sorted(describe(SETTINGS))), st.text(max_size=20))
def test_any_text_is_parsed_or_refused_by_name(name: str, word: str) -> None:
    try:
        options = Options.parse({name: word}, SETTINGS)
    except OptionError as error:
        refused = error.name
    else:
        refused = name
        assert 0 <= options.min_score <= 1
        assert options.render_factor is None or 4 <= options.render_factor <= 256
    assert refused == name

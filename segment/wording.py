"""Counts in messages: "1 label", "2 labels"."""

from __future__ import annotations


def counted(count: float, noun: str, plural: str = "") -> str:
    """`count` and the noun, in the plural unless `count` is 1. `plural`: by default, `noun` with an s."""
    return f"{count:,.12g} {noun if count == 1 else plural or noun + 's'}"

"""Read a detectron2 config file as nested plain values, without importing or calling anything.

`cfg.dump()` writes plain YAML. `LazyConfig.save` (detectron2/config/lazy.py) also writes Python tags, which detectron2
reads with `yaml.unsafe_load`: that imports and calls whatever the file names. Here these tags are read as data, and
every other tag is refused:

    !!python/name:MODULE.NAME                a Name; it is not imported
    !!python/tuple                           a list
    !!python/object:...ShapeSpec             a mapping
    !!python/object/apply:functools.partial  a Partial; it is not called, and must be of torch.nn or detectron2

Aliases let a small YAML file expand to an enormous document, so the expanded size is checked before it is built.

A config can name others in `_BASE_` and give only what differs, as most files in detectron2's `configs` folder do
(fvcore/common/config.py, CfgNode.load_yaml_with_base). The bases are read in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from segment.errors import ConversionError

MAX_BYTES = 2 << 20
MAX_VALUES = 200_000
"""Maximum number of values in a document whose aliases are expanded."""
MAX_DEPTH = 64
_TOO_DEEP = f"it has more than the maximum of {MAX_DEPTH} nested levels."
BASE = "_BASE_"
"""The key with the path of the base config, or a list of them."""
MAX_FILES = 16
"""Maximum number of files of a config, including its bases."""
ELSEWHERE = "SEGMENT_ENGINE=detectron2 runs any GeneralizedRCNN with masks."
"""What works with a config that is not supported (engine/detectron2.py), for the end of an error message."""
MAX_SHOWN, MAX_REASON = 100, 400
"""Maximum number of characters of a value and of a parser's message in an error message."""

_PARTIAL_OF = ("torch.nn.", "detectron2.")
"""Packages whose classes and functions `functools.partial` may name."""


@dataclass(frozen=True)
class Name:
    """The dotted name of a Python class or function."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Partial:
    """A class or function with keyword arguments bound to it."""

    name: Name
    arguments: dict[str, Any]


def shown(value: object) -> str:
    """A value of a document as text for an error message, shortened to MAX_SHOWN characters."""
    try:
        text = str(value) if isinstance(value, Name) else repr(value)
    except ValueError:  # Python does not convert numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def read(path: Path, *, bases: bool = True) -> dict[str, Any]:
    """The top-level mapping of a YAML file, merged over that of its bases.

    A relative path in `_BASE_` is relative to the file that contains it. `bases`: whether a file may have bases; False
    for a file from a URL, which must not choose files on this machine. Raises ConversionError.
    """
    if bases:
        return _merged(path, files(path))
    document = _read_one(path)
    if BASE in document:
        raise ConversionError(
            f"The config {path.name} is from a URL and has {BASE}: {shown(document[BASE])}. Download it and its base "
            "and give the path of the file, or give the full config (the output of `cfg.dump()`)."
        )
    return document


def files(path: Path) -> dict[Path, dict[str, Any]]:
    """The file and all its bases, each with its own top-level mapping. Raises ConversionError."""
    documents: dict[Path, dict[str, Any]] = {}
    missing = [path]
    while missing:
        file = missing.pop()
        if file in documents:
            continue
        if len(documents) == MAX_FILES:
            raise ConversionError(f"The config {path.name} has more than the maximum of {MAX_FILES - 1} base files.")
        if file != path and not file.is_file():
            raise ConversionError(
                f"The config {path.name} has {BASE}: {file}, and there is no such file. Put the base there, or give "
                "the full config: the config.yaml that a training run writes, or the output of `cfg.dump()`."
            )
        documents[file] = _read_one(file)
        missing += _bases(file, documents[file])
    return documents


def _bases(path: Path, document: Mapping[str, Any]) -> list[Path]:
    """The paths that a document's `_BASE_` names."""
    given = document.get(BASE, [])
    names = given if isinstance(given, list) else [given]
    for name in names:
        if not isinstance(name, str) or not name or "://" in name:
            raise ConversionError(
                f"The config {path.name} has {BASE}: {shown(name)}. A base must be the path of a file on this machine, "
                "relative to the config. Download it, or give the full config (the output of `cfg.dump()`)."
            )
    return [Path(os.path.normpath(path.parent / Path(name).expanduser())) for name in names]


def _merged(path: Path, documents: Mapping[Path, dict[str, Any]], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file, merged over those of its bases. A later base has precedence over an earlier one."""
    if path in above:
        raise ConversionError(f"The config {above[0].name} cannot be read: {path.name} is its own base ({BASE}).")
    merged: dict[str, Any] = {}
    for base in _bases(path, documents[path]):
        _merge(_merged(base, documents, (*above, path)), merged, path)
    own = {key: value for key, value in documents[path].items() if key != BASE}
    _merge(own, merged, path)
    return merged


def _merge(values: Mapping[str, Any], into: dict[str, Any], path: Path) -> None:
    """Merge nested mappings; `values` have precedence."""
    for key, value in values.items():
        if not (isinstance(value, dict) and key in into):
            into[key] = value
        elif isinstance(into[key], dict):
            into[key] = dict(into[key])
            _merge(value, into[key], path)
        else:
            raise ConversionError(
                f"In the config {path.name}, {key} is a mapping; in its base, it is {shown(into[key])}."
            )


def _read_one(path: Path) -> dict[str, Any]:
    """The top-level mapping of one YAML file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConversionError(f"The config {path.name} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_BYTES:
        raise ConversionError(f"The config {path.name} is larger than the maximum of {MAX_BYTES >> 20} MiB.")
    try:
        text = data.decode("utf-8")
        _check_size(text)
        document = yaml.load(text, _Loader)
    except ConversionError as error:
        raise ConversionError(f"The config {path.name} is refused: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]  # PyYAML's reasons have several lines
        raise ConversionError(f"The config {path.name} is not valid YAML: {reason}.") from None
    if not isinstance(document, dict):
        raise ConversionError(f"The config {path.name} is not a detectron2 config: it is not a mapping.")
    return cast("dict[str, Any]", document)


def _check_size(text: str) -> None:
    """Raise ConversionError if the document is nested too deeply or expands to too many values."""
    stack: list[_Size] = [_Size()]
    anchored: dict[str, _Size] = {}
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Size(event.anchor))
            if len(stack) > MAX_DEPTH:  # here, because parsing takes time in proportion to the square of the depth
                raise ConversionError(_TOO_DEEP)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            closed = stack.pop()
        elif isinstance(event, yaml.ScalarEvent):
            closed = _Size(event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchored:
                raise ConversionError(f"the alias *{event.anchor} is used inside the value that it refers to.")
            closed = anchored[event.anchor]
        else:
            continue
        if closed.anchor:
            anchored[closed.anchor] = closed
        stack[-1].values += closed.values
        stack[-1].height = max(stack[-1].height, closed.height + 1)
        if stack[-1].height > MAX_DEPTH:
            raise ConversionError(_TOO_DEEP)
        if stack[-1].values > MAX_VALUES:
            raise ConversionError(f"it has more than the maximum of {MAX_VALUES:,} values.")


@dataclass
class _Size:
    """The size of a YAML node with its aliases expanded."""

    anchor: str | None = None
    values: int = 1
    height: int = 1


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which calls nothing, with support for the tags above."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        for key in mapping:
            if not isinstance(key, str):
                raise ConversionError(f"its key {shown(key)} is not a string.")
        return mapping


def _python(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    """The value of a node with a !!python tag, as data. Raises ConversionError for tags that are not supported."""
    kind, _, name = suffix.partition(":")
    if kind == "name":
        return Name(name)
    if suffix == "tuple" and isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        content = loader.construct_mapping(node, deep=True)
        if suffix == "object:detectron2.layers.shape_spec.ShapeSpec":
            return content
        if suffix == "object/apply:functools.partial":
            return _partial(content)
    raise ConversionError(
        f"the tag !!python/{suffix[:MAX_SHOWN]} would import or call something. Supported: name, tuple, ShapeSpec, and "
        "functools.partial of classes of torch.nn or detectron2."
    )


def _partial(content: dict[Hashable, Any]) -> Partial:
    """Parse a partial as PyYAML writes it: {args: [function], state: (function, arguments, keywords, attributes)}."""
    match content:
        case {"args": [Name() as name], "state": [Name() as same, [], dict() | None as keywords, None | {}], **rest}:
            if name == same and not rest and name.name.startswith(_PARTIAL_OF):
                return Partial(name, keywords or {})
    raise ConversionError(
        "the tag !!python/object/apply:functools.partial is only supported for keyword arguments of a class or "
        "function of torch.nn or detectron2."
    )


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _python)

"""The calls of a LazyConfig: mappings with a `_target_`, whose arguments are read but which are never called.

Every error names the argument's key. Each number is taken with its valid range (ranges.py). Interpolations such as
`${..num_classes}` are OmegaConf's: one dot is the mapping that contains the value, each further dot its parent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segment.convert import ranges
from segment.convert.architecture import NORMS
from segment.convert.document import ELSEWHERE, MAX_SHOWN, Name, Partial, shown
from segment.convert.ranges import Number, Range, Rows
from segment.errors import ConversionError

_INTERPOLATION = re.compile(r"\$\{(\.*)([\w.]+)\}")
_MOST_INTERPOLATIONS = 20
"""Maximum number of interpolations that refer to each other."""
_BATCH_NORM_CLASSES = ("BatchNorm2d", "FrozenBatchNorm2d", "SyncBatchNorm", "NaiveSyncBatchNorm")
_LAMBDA = "<lambda>"
_TRAINING = (
    "anchor_boundary_thresh",
    "anchor_matcher",
    "batch_size_per_image",
    "box_reg_loss_type",
    "fed_loss_num_classes",
    "freeze_at",
    "get_fed_loss_cls_weights",
    "loss_weight",
    "positive_fraction",
    "proposal_append_gt",
    "proposal_matcher",
    "proposal_matchers",
    "smooth_l1_beta",
    "train_on_pred_boxes",
    "use_fed_loss",
    "vis_period",
)
"""Arguments that only training reads."""


class Call:
    """A call, whose arguments are taken one by one. Errors name the argument's key.

    `targets`: names of the classes or functions that may be called, without their module.
    """

    def __init__(self, document: Mapping[str, Any], path: tuple[str, ...], *targets: str) -> None:
        self._document = document
        self._path = path
        self._arguments = value_at(document, path)
        if not isinstance(self._arguments, Mapping):
            raise ConversionError(f"{'.'.join(path)} is missing; it must be a call of {' or '.join(targets)}.")
        self._taken = {"_target_"}
        name = str(self._arguments.get("_target_"))
        self.target = name.rpartition(".")[2]
        if self.target not in targets or not name.startswith("detectron2."):
            raise ConversionError(
                f"{self.key('_target_')} is {name[:MAX_SHOWN]}; supported: {' or '.join(targets)} of detectron2. "
                + ELSEWHERE
            )

    def key(self, name: str) -> str:
        return ".".join((*self._path, name))

    def take(self, name: str, *default: Any) -> Any:
        """An argument with interpolations resolved. Raises ConversionError if it is absent and has no default."""
        self._taken.add(name)
        if name not in self._arguments:
            if default:
                return default[0]
            raise ConversionError(f"{self.key(name)} is missing.")
        return resolved(self._document, (*self._path, name))

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Raise ConversionError if an argument that changes the results has not been taken."""
        for name in self._arguments:
            if name not in self._taken and name not in _TRAINING and name not in ignored:
                raise ConversionError(
                    f"{self.key(name[:MAX_SHOWN])} is not supported. Supported arguments: {self._known()}."
                )

    def _known(self) -> str:
        return ", ".join(sorted(self._taken - {"_target_"}))

    def absent(self, *names: str) -> None:
        for name in names:
            self.one_of(name, (None,), None)

    def call(self, name: str, *targets: str) -> Call:
        self._taken.add(name)
        return Call(self._document, (*self._path, name), *targets)

    def calls(self, name: str, *targets: str) -> list[Call]:
        given = self.take(name)
        if not isinstance(given, list) or not given:
            raise ConversionError(f"{self.key(name)} must be a list of calls of {' or '.join(targets)}.")
        return [Call(self._document, (*self._path, name, str(i)), *targets) for i in range(len(given))]

    def one_of(self, name: str, allowed: tuple[Any, ...], *default: Any) -> Any:
        value = self.take(name, *default)
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise ConversionError(
                f"{self.key(name)} is {shown(value)}; supported: {' or '.join(repr(a) for a in allowed)}. {ELSEWHERE}"
            )
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return ranges.flag(self.key(name), self.take(name, default))

    def number(self, name: str, valid: Range[Number], *default: Number) -> Number:
        return valid.one(self.key(name), self.take(name, *default))

    def numbers(
        self, name: str, valid: Range[Number], count: int | None = None, *default: Sequence[Number]
    ) -> tuple[Number, ...]:
        return valid.several(self.key(name), self.take(name, *default), count)

    def per_level(self, name: str, valid: Range[Number], levels: int) -> Rows[Number]:
        return valid.per_level(self.key(name), self.take(name), levels)

    def indexes(self, name: str) -> frozenset[int]:
        """Numbers of blocks, counted from 0."""
        value = self.take(name, [])
        return frozenset(ranges.INDEX.several(self.key(name), value)) if value != [] else frozenset()

    def dims(self, name: str) -> tuple[int, ...]:
        """Widths of layers, which must all be the same; none for a list without any."""
        value = self.take(name)
        dims = ranges.CHANNELS.several(self.key(name), value) if value != [] else ()
        if len(set(dims)) > 1:
            raise ConversionError(f"{self.key(name)} is {shown(value)}; all widths must be equal.")
        return dims

    def torch_class(self, name: str, wanted: str, *keywords: str) -> dict[str, Any]:
        """Check that an argument is absent or the class `wanted` of torch.nn; the arguments that a partial binds.

        Only arguments called `keywords` may be bound.
        """
        value = self.take(name, None)
        if isinstance(value, Mapping) and value.get("_partial_") is True:  # the zoo's table, which has no tags
            rest = {key: bound for key, bound in value.items() if key not in ("_target_", "_partial_")}
            value = Partial(Name(str(value.get("_target_"))), rest)
        arguments = value.arguments if isinstance(value, Partial) else {}
        given = str(value.name if isinstance(value, Partial) else value)
        if value is not None and not (given.startswith("torch.nn.") and given.rpartition(".")[2] == wanted):
            raise ConversionError(f"{self.key(name)} is {given[:MAX_SHOWN]}; supported: torch.nn's {wanted}.")
        if other := sorted(arguments.keys() - set(keywords)):
            raise ConversionError(f"{self.key(name)} binds {other[0][:MAX_SHOWN]}, which is not supported.")
        return arguments

    def norm(self, name: str, default: str, allowed: Sequence[str] = NORMS) -> str:
        """A norm by the name that get_norm of detectron2/layers/batch_norm.py knows.

        A function that LazyConfig.save could not save, as the lambdas of the zoo's LSJ configs, is taken for a batch
        norm: the checkpoint must then contain a running mean and variance.
        """
        value = self.take(name, default)
        if isinstance(value, Name) and value.name.rpartition(".")[2] in (*_BATCH_NORM_CLASSES, _LAMBDA):
            return "BN"
        if value is None:
            return ""
        if value not in allowed:
            raise ConversionError(f"{self.key(name)} is {shown(value)}; supported: {', '.join(allowed)}.")
        return str(value)

    def class_of(self, name: str, wanted: tuple[str, ...], *, required: bool = False) -> str:
        """The class of detectron2 that an argument names, without its module; by default the first of `wanted`."""
        value = self.take(name) if required else self.take(name, None)
        if value is None and not required:
            return wanted[0]
        given = str(value).rpartition(".")[2]
        if given not in wanted or not str(value).startswith("detectron2."):
            raise ConversionError(
                f"{self.key(name)} is {shown(value)}; supported: {' or '.join(wanted)} of detectron2."
            )
        return given

    def levels(self, name: str, admitted: Mapping[str, int]) -> tuple[int, ...]:
        """The levels of the feature maps with the given names, such as p2 and p3."""
        return ranges.levels(self.key(name), self.take(name), admitted)


def value_at(document: Any, path: tuple[str, ...]) -> Any:
    """The value at a path, None if there is none. Parts of the path can be indices of a list."""
    for part in path:
        if isinstance(document, Mapping):
            document = document.get(part)
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document


def resolved(document: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path, with interpolations resolved. Raises ConversionError if one refers to no value."""
    value = value_at(document, path)
    for _ in range(_MOST_INTERPOLATIONS):
        if not isinstance(value, str) or "${" not in value:
            return value
        found = _INTERPOLATION.fullmatch(value)
        if not found:
            break
        dots, rest = found.groups()
        above = path[: len(path) - len(dots)] if dots else ()
        path = (*above, *rest.split("."))
        value = value_at(document, path)
        if value is None:
            break
    raise ConversionError(f"{'.'.join(path)[:MAX_SHOWN]}: the interpolation {shown(value)} refers to no value.")

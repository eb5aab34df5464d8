"""Read a detectron2 config file as the network at test time that it describes.

detectron2 has two kinds of config: YAML of nested keys (cfgnode.py) and LazyConfigs, which are nested calls
(lazyconfig.py). A config that requires something that cannot be converted is refused; the error names the key, its
value and the supported values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segment.convert import cfgnode, lazyconfig
from segment.convert import document as documents
from segment.convert.architecture import Config
from segment.convert.document import MAX_REASON
from segment.errors import ConversionError

__all__ = ["Config", "parse", "read"]


def read(path: Path, *, bases: bool = True) -> Config:
    """Read a detectron2 config file: YAML as `cfg.dump()` or `LazyConfig.save` writes it.

    `bases`: whether to read the config files that `_BASE_` names; if False, such a config is refused. Raises
    ConversionError.
    """
    document = documents.read(path, bases=bases)
    if "MODEL" not in document and "model" not in document:
        raise ConversionError(f"The config {path.name} has neither MODEL nor model: it is not a detectron2 config.")
    return parse(document)


def parse(document: Mapping[str, Any]) -> Config:
    """Parse a config given as nested mappings. A LazyConfig has the key `model`, a YAML config the key `MODEL`.

    Raises ConversionError, which names the key.
    """
    try:
        return lazyconfig.parse(document) if "model" in document else cfgnode.parse(document)
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise ConversionError(f"A value in the config has the wrong type: {str(error)[:MAX_REASON]}.") from None

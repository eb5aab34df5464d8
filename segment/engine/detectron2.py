"""Run a model in detectron2 itself, for models that cannot be converted, such as those with custom heads.

A model is a folder as written by a training run: `config.yaml`, `model_final.pth` or `.pkl`, and optionally
`labels.txt` or `metadata.json` with the class names. The config is either a yacs config, with the key `MODEL`, or a
LazyConfig as written by LazyConfig.save, with the key `model`.

The image is not resized before the network. detectron2's DefaultPredictor would enlarge its shorter side to 800 pixels,
which would undo the effect of the render factor. PyTorch needs about 400 MB in addition to the weights, so an instance
should have 2 GiB.

LazyConfigs and checkpoints can contain code, which detectron2 executes. Only load files that you trust.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment import extras, process
from segment.detections import Detections, from_boxes
from segment.engine import footprint, measurement
from segment.engine.footprint import Footprint
from segment.errors import ModelError
from segment.labels import labels_for, read_labels

INSTALLATION = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
WEIGHTS = ("model_final.pth", "model_final.pkl")


class Detectron2:
    """A loaded detectron2 model. See Engine for the interface. Raises ModelError.

    `folder`: with config.yaml and the weights. `labels`: class names by index; replace the model's own. `memory`:
    memory of a run; measured by default, which takes some seconds. `overrides`: fields of the Footprint to replace.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int,
        labels: tuple[str, ...] = (),
        memory: Footprint | None = None,
        overrides: Mapping[str, float] | None = None,
    ) -> None:
        try:
            import torch
            from detectron2.modeling import GeneralizedRCNN
        except ImportError as error:
            raise ModelError(
                f"SEGMENT_ENGINE=detectron2 needs detectron2 ({error}). Install its requirements with: "
                f"{extras.command('detectron2')}; and detectron2 as {INSTALLATION} describes."
            ) from None
        torch.set_num_threads(threads)
        self._torch, self._infer, self._lock = torch, GeneralizedRCNN.inference, threading.Lock()
        config = _config(folder)
        self._model = _model(config)
        if not isinstance(self._model, GeneralizedRCNN) or not getattr(self._model.roi_heads, "mask_on", False):
            raise ModelError(f"The model in {folder.name} has no masks: it must be a GeneralizedRCNN with MASK_ON.")
        _load(self._model, _weights(folder))
        given = labels or _labels_beside(folder)
        self.labels = labels_for(self._model.roi_heads.num_classes, given, _labels_of_data_set(config))
        self.stride, self.streams = self._model.backbone.size_divisibility or 1, 1
        self.footprint = footprint.overridden(memory, overrides or {}, lambda: measurement.measure_engine(self))

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """None: an image of any size is accepted."""
        return None

    def mask_bytes(self, size: tuple[int, int]) -> int:
        """The size of PointRend's grids, 224 x 224 float32, which are the largest."""
        return 4 * 224 * 224

    def release(self) -> None:
        """Do nothing: on a CPU, PyTorch keeps no buffers between runs."""

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        height, width = pixels.shape[:2]
        ordered = pixels if self._model.input_format == "RGB" else pixels[:, :, ::-1]
        image = self._torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
        with self._lock, self._torch.inference_mode():
            # GeneralizedRCNN's method, because a PanopticFPN's own would also segment the background.
            (found,) = self._infer(
                self._model, [{"image": image, "height": height, "width": width}], do_postprocess=False
            )
            found = found[found.pred_boxes.nonempty() & (found.scores > min_score)]
            found = found[found.scores.argsort(descending=True)[:max_detections]]
            boxes, scores, classes = found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()
            grids = found.pred_masks[:, 0].numpy()
            process.trim_heap()  # otherwise, memory freed by this run would add to the peak of the next one
        return from_boxes(boxes, scores, classes, grids, (width, height))


def _config(folder: Path) -> Any:
    """The folder's config: a CfgNode, or a DictConfig for a LazyConfig. Raises ModelError."""
    import yaml

    path = folder / "config.yaml"
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise ModelError(
            f"{folder.name or 'SEGMENT_MODEL'} is not a model for this engine: config.yaml cannot be read "
            f"({error.strerror}). SEGMENT_MODEL must be a folder with config.yaml and {' or '.join(WEIGHTS)}."
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder.name}/config.yaml is not a YAML file: {error}.") from None
    if isinstance(document, dict) and "MODEL" in document:
        return _yacs_config(path, "POINT_HEAD" in document["MODEL"])
    if isinstance(document, dict) and "model" in document:
        return _lazy_config(path)
    raise ModelError(f"{folder.name}/config.yaml is not a detectron2 config: it has neither MODEL nor model.")


def _yacs_config(path: Path, point_rend: bool) -> Any:
    from detectron2.config import get_cfg

    config = get_cfg()
    try:
        if point_rend:
            from detectron2.projects.point_rend import add_pointrend_config

            add_pointrend_config(config)
        config.merge_from_file(str(path))
    except ImportError as error:
        raise ModelError(f"The config needs PointRend, which cannot be imported ({error}).") from None
    except (KeyError, ValueError, AssertionError, OSError) as error:
        raise ModelError(f"detectron2 does not accept {path.name}: {error}") from None
    config.MODEL.DEVICE = "cpu"
    config.MODEL.WEIGHTS = ""
    return config


def _lazy_config(path: Path) -> Any:
    from detectron2.config import LazyConfig

    try:
        return LazyConfig.load(str(path))
    except Exception as error:  # it imports and calls what the config names
        raise ModelError(f"detectron2 does not accept {path.name}: {type(error).__name__}: {error}") from None


def _model(config: Any) -> Any:
    """The network of a config, without weights. Raises ModelError."""
    from detectron2.config import instantiate
    from detectron2.modeling import build_model

    try:
        model = build_model(config) if hasattr(config, "MODEL") else instantiate(config.model)
    except Exception as error:  # a config can be wrong in any way
        raise ModelError(f"detectron2 cannot build this config: {type(error).__name__}: {error}") from None
    return model.eval()


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder.name} has no weights; next to config.yaml, there must be {' or '.join(WEIGHTS)}.")


def _load(model: Any, path: Path) -> None:
    """Load a checkpoint. Raises ModelError if a tensor is missing, unexpected or has another shape."""
    from detectron2.checkpoint import DetectionCheckpointer

    class Checkpointer(DetectionCheckpointer):  # type: ignore[misc]
        """Records the first problem, for which detectron2 would only log a warning."""

        problem: str | None = None

        def _load_model(self, checkpoint: Any) -> Any:
            found = super()._load_model(checkpoint)
            if found.incorrect_shapes:
                name, theirs, ours = found.incorrect_shapes[0]
                self.problem = f"the tensor {name} has the shape {tuple(theirs)}; the config needs {tuple(ours)}"
            elif found.missing_keys:
                self.problem = f"it has no tensor {found.missing_keys[0]}, which the config needs"
            elif found.unexpected_keys:
                self.problem = f"it has the tensor {found.unexpected_keys[0]}, which the config does not have"
            return found

    checkpointer = Checkpointer(model)
    try:
        checkpointer.load(str(path), checkpointables=[])
    except Exception as error:  # a damaged pickle can fail in any way
        raise ModelError(f"The checkpoint {path.name} cannot be read: {type(error).__name__}: {error}") from None
    if checkpointer.problem:
        raise ModelError(f"The checkpoint {path.name} does not fit its config.yaml: {checkpointer.problem}.")


def _labels_of_data_set(config: Any) -> tuple[str, ...]:
    """The class names of the config's test data set, if detectron2 knows it."""
    from detectron2.data import MetadataCatalog
    from omegaconf import OmegaConf

    lazy = not hasattr(config, "MODEL")
    dataset = (
        OmegaConf.select(config, "dataloader.test.dataset.names") if lazy else next(iter(config.DATASETS.TEST), "")
    )
    return tuple(MetadataCatalog.get(dataset).get("thing_classes", ())) if isinstance(dataset, str) and dataset else ()


def _labels_beside(folder: Path) -> tuple[str, ...]:
    found = (folder / name for name in ("labels.txt", "metadata.json"))
    return next((read_labels(path) for path in found if path.is_file()), ())

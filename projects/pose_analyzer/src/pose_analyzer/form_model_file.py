"""Keep form models as plain arrays in one .npz file, which holds no code and is never unpickled."""

import lzma
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pose_analyzer.errors import InvalidFormModelError
from pose_analyzer.form_anomaly_detector import (
    Decision,
    FaultAxes,
    FormModel,
    GeneralModel,
    LinearModel,
    PersonalModel,
)
from pose_analyzer.form_trees import Trees
from pose_analyzer.repetition_features import SIGNAL_NAMES

VERSION: Final = 2
"""Of the file's layout, and of what features mean: a file of another version is refused."""
SHIPPED: Final = Path(__file__).parent / "data" / "form_models.npz"
ANY: Final = "any"
"""Stands for the exercise and the view of the model for what nothing was trained for."""
_MAX_BYTES: Final = 16 * 2**20
_VALUE_STEPS: Final = 255.0


@dataclass(frozen=True, slots=True, eq=False)
class FormModels:
    """Models by exercise and view."""

    by_name: Mapping[tuple[str, str], FormModel]

    def select(self, exercise: str, view: str) -> FormModel:
        """Model of an exercise seen from a view (a value of `types.View`).

        Without one, the model of distances alone, which needs a personal baseline.
        """
        return self.by_name.get((exercise, view), self.by_name[ANY, ANY])

    def trained(self) -> tuple[str, ...]:
        """Exercises with models of their own."""
        return tuple(sorted({exercise for exercise, _ in self.by_name if exercise != ANY}))


def save_models(models: Sequence[FormModel], path: Path) -> None:
    """Write models in half precision; they answer the same to a few thousandths."""
    arrays: dict[str, np.ndarray] = {
        "version": np.array(VERSION),
        "signals": np.array(SIGNAL_NAMES),
        "names": np.array([f"{m.exercise}/{m.view}" for m in models]),
    }
    for model in models:
        name = f"{model.exercise}/{model.view}"
        personal, general = model.personal, model.general
        arrays[f"{name}/personal/spread"] = personal.spread.astype(np.float16)
        arrays |= _of_decision(f"{name}/personal/decision", personal.decision)
        if personal.axes and personal.trees and personal.forest:
            arrays[f"{name}/personal/axes"] = personal.axes.axes.astype(np.float16)
            arrays[f"{name}/personal/gain"] = personal.axes.gain
            arrays |= _of_trees(f"{name}/personal/trees", personal.trees)
            arrays |= _of_trees(f"{name}/personal/forest", personal.forest)
        if general:
            arrays[f"{name}/general/expected"] = general.expected.astype(np.float16)
            arrays |= _of_decision(f"{name}/general/decision", general.decision)
            arrays |= _of_trees(f"{name}/general/trees", general.trees)
            arrays |= _of_trees(f"{name}/general/forest", general.forest)
            # Single precision: columns differ in size by more than half precision bears.
            weights = [general.linear.bias, *general.linear.weights]
            arrays[f"{name}/general/linear"] = np.array(weights, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, arrays)


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As `np.savez_compressed` does, but with LZMA, which packs trees better."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def load_models(path: Path = SHIPPED) -> FormModels:
    """Read what `save_models` wrote.

    Raises
    ------
    InvalidFormModelError
        If the file is missing, damaged, of another version, or no file of form models.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidFormModelError(str(path), "it is too large")
        # np.load leaves a file open that is torn, unless it was opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        return _read(path, arrays)
    except (
        OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, lzma.LZMAError,
    ) as error:  # fmt: skip
        raise InvalidFormModelError(str(path), str(error)) from error
    except (KeyError, IndexError, AttributeError) as error:
        raise InvalidFormModelError(str(path), f"it has no {error}") from error


def _read(path: Path, arrays: Mapping[str, np.ndarray]) -> FormModels:
    version = int(arrays["version"])
    if version != VERSION:
        raise InvalidFormModelError(str(path), f"it has version {version}, wanted is {VERSION}")
    if tuple(arrays["signals"].tolist()) != SIGNAL_NAMES:
        raise InvalidFormModelError(str(path), "it was made for other signals")
    models = {}
    for name in arrays["names"].tolist():
        exercise, view = name.split("/")
        spread = arrays[f"{name}/personal/spread"].astype(np.float64)
        decision = _decision(f"{name}/personal/decision", arrays)
        personal = PersonalModel(spread, decision)
        general = None
        if f"{name}/personal/axes" in arrays:
            axes = arrays[f"{name}/personal/axes"].astype(np.float64)
            personal = PersonalModel(
                spread,
                decision,
                FaultAxes(axes, arrays[f"{name}/personal/gain"].astype(np.float64)),
                _trees(f"{name}/personal/trees", arrays),
                _trees(f"{name}/personal/forest", arrays),
            )
        if f"{name}/general/expected" in arrays:
            bias, *weights = arrays[f"{name}/general/linear"].astype(np.float64).tolist()
            general = GeneralModel(
                arrays[f"{name}/general/expected"].astype(np.float64),
                _trees(f"{name}/general/trees", arrays),
                _trees(f"{name}/general/forest", arrays),
                LinearModel(np.array(weights), bias),
                _decision(f"{name}/general/decision", arrays),
            )
        models[exercise, view] = FormModel(exercise, view, personal, general)
    if (ANY, ANY) not in models:
        raise InvalidFormModelError(str(path), "it has no model for exercises without training")
    return FormModels(models)


def _of_decision(name: str, decision: Decision) -> dict[str, np.ndarray]:
    limits = [decision.bias, decision.normal_below, decision.faulty_above]
    return {name: np.concatenate([limits, decision.weights])}


def _decision(name: str, arrays: Mapping[str, np.ndarray]) -> Decision:
    bias, normal_below, faulty_above, *weights = arrays[name].astype(np.float64).tolist()
    return Decision(np.array(weights), bias, normal_below, faulty_above)


def _of_trees(name: str, trees: Trees) -> dict[str, np.ndarray]:
    """Values in 255 steps of their range; of the children, how far the right one is.

    Nodes stand depth first, as scikit-learn has them, so that the left child comes next.
    """
    low, high = float(trees.value.min()), float(trees.value.max())
    step = (high - low) / _VALUE_STEPS or 1.0
    steps = np.round((trees.value - low) / step)
    # Trees are padded to one size with nodes that nothing leads to.
    ahead = np.maximum(trees.right - np.arange(trees.right.shape[1]), 0)
    return {
        f"{name}/feature": trees.feature.astype(np.int16),
        f"{name}/threshold": trees.threshold.astype(np.float16),
        f"{name}/right": ahead.astype(np.int16),
        f"{name}/value": np.where(ahead > 0, 0, steps).astype(np.uint8),
        f"{name}/scale": np.array([low, step, trees.depth]),
    }


def _trees(name: str, arrays: Mapping[str, np.ndarray]) -> Trees:
    low, step, depth = arrays[f"{name}/scale"].tolist()
    ahead = arrays[f"{name}/right"].astype(np.int64)
    node = np.broadcast_to(np.arange(ahead.shape[1]), ahead.shape)
    right = node + ahead
    if ahead.min() < 0 or right.max() >= ahead.shape[1]:
        raise ValueError(f"{name} leads out of its arrays")
    return Trees(
        arrays[f"{name}/feature"].astype(np.int64),
        arrays[f"{name}/threshold"].astype(np.float64),
        np.where(ahead > 0, node + 1, node),
        right,
        low + step * arrays[f"{name}/value"].astype(np.float64),
        int(depth),
    )

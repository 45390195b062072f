"""Predictions as values: cards, categories, whether a run fits."""

from dataclasses import replace

import pytest
import torch

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.memory_predictor import Fit, calibration, device_constants, fits, predict
from gpu_optimizer.models.registered import FAMILIES
from gpu_optimizer.models.unet import UNet
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.builder import build_step
from gpu_optimizer.types import Category, Machine, Mode, Prediction

GIB = 2**30
SMALL = Workload("unet", Mode.TRAIN, batch_size=2, image_size_px=16)


def machine(total_bytes):
    return Machine("box", "RTX 4060", total_bytes, GIB, (8, 9))


@pytest.mark.parametrize(
    ("total_gib", "expected"),
    [(12.2, Fit.YES), (11.5, Fit.TIGHT), (10.6, Fit.TIGHT), (9.9, Fit.NO)],
)
def test_what_lies_within_the_error_is_said_to_be_tight(total_gib, expected):
    prediction = Prediction(9 * GIB, 9 * GIB, 10 * GIB, error_ratio=0.1)
    assert fits(prediction, machine(int(total_gib * GIB))) is expected


def test_cards_are_found_by_the_names_drivers_give():
    assert device_constants("NVIDIA H200").measured
    assert device_constants("NVIDIA L40S").name == "L40S"
    assert device_constants("NVIDIA GeForce RTX 4070 Ti").name == "RTX 4070 Ti"
    with pytest.raises(UnknownNameError, match="H200"):
        device_constants("Voodoo 2")


def test_a_card_that_was_not_measured_gets_a_wider_bound():
    measured, estimated = predict(SMALL, "H200"), predict(SMALL, "RTX 4060")
    assert measured.error_ratio == calibration().error_ratio
    assert estimated.error_ratio > measured.error_ratio
    assert any("not measured" in line for line in estimated.assumptions)


def test_a_process_that_trains_takes_more_beside_the_allocator():
    beside = [
        each.total_bytes - each.reserved_peak_bytes
        for each in (predict(SMALL), predict(replace(SMALL, mode=Mode.INFER)))
    ]
    card = device_constants("H200")
    assert beside == [card.context_bytes, card.inference_context_bytes]
    assert beside[0] > beside[1]


def test_a_prediction_says_what_the_peak_consists_of():
    prediction = predict(SMALL, "RTX 4060", AllocatorConfig(expandable_segments=True))
    assert sum(prediction.by_category_bytes.values()) == prediction.allocated_peak_bytes
    parameters = prediction.by_category_bytes[Category.PARAMETER]
    assert prediction.by_category_bytes[Category.OPTIMIZER_STATE] >= 2 * parameters * 0.99


@pytest.mark.parametrize("change", [{"dtype": "int4"}, {"optimizer": "lion"}, {"autocast": "fp8"}])
def test_unknown_names_are_refused_when_a_workload_is_made(change):
    with pytest.raises(UnknownNameError):
        Workload("unet", **change)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="llama-7b"):
        predict(Workload("alexnet"))


def test_the_step_that_is_predicted_also_runs_for_real():
    small = replace(FAMILIES["unet"], build=lambda workload: UNet((32, 32), n_time=32))
    step = build_step(SMALL, torch.device("cpu"), small)
    step.run()
    step.run()
    assert all(each.grad is not None for each in step.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "yolo11n-pose"])
def test_every_registered_model_can_be_predicted(name):
    mode = Mode.INFER if name in {"llama-7b", "mistral", "qwen"} else Mode.TRAIN
    prediction = predict(Workload(name, mode, n_tokens=64, autocast="bf16", checkpointing=True))
    assert prediction.by_category_bytes[Category.PARAMETER] > 0

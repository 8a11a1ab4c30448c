"""Trainers whose denoiser computes as peft and diffusers do, and the gradients of both beside those of float32."""

from typing import Any

import torch
from msgspec.structs import replace
from tests.engines.trainers import BuildTrainer, never

from training_schemas.jobs import TrainingType
from training_schemas.spec import FluxLoraParameters, Quantization, SdxlParameters, WeightDtype
from training_worker.engines.diffusers.models.adapter_groups import full_weight
from training_worker.engines.diffusers.pipelines import PIPELINES
from training_worker.engines.diffusers.training.trainer import Trainer

Gradients = dict[str, torch.Tensor]


def build_plain(monkeypatch: Any, build: BuildTrainer, settings: Any, training_type: TrainingType) -> Trainer:
    """Build a trainer without what makes a step lean."""
    with monkeypatch.context() as patch:
        patch.setattr(PIPELINES[training_type], "make_denoiser_lean", lambda _: None)
        return build(settings, training_type)


def build_truth(
    monkeypatch: Any,
    build: BuildTrainer,
    settings: FluxLoraParameters | SdxlParameters,
    training_type: TrainingType,
    rounded: torch.nn.Module,
) -> Trainer:
    """Build one that computes in float32, with a base of the very numbers that another's rounded base has."""
    full = replace(settings, weight_dtype=WeightDtype.FLOAT32, quantization=Quantization.NONE)
    trainer = build_plain(monkeypatch, build, full, training_type)
    modules = dict(rounded.named_modules())
    with torch.no_grad():
        for name, module in trainer.pipeline.denoiser.named_modules():
            for key, own in module.named_parameters(recurse=False):
                other = modules[name]
                linear = key == "weight" and isinstance(other, torch.nn.Linear)
                own.copy_(full_weight(other, torch.float32) if linear else getattr(other, key))
    return trainer


def gradients(trainer: Trainer) -> Gradients:
    """Take the gradients of a step's loss, by the names of the adapter's weights."""
    trainer.accumulate(1, never)
    return {
        name: weight.grad.clone()
        for name, weight in trainer.pipeline.denoiser.named_parameters()
        if weight.requires_grad and weight.grad is not None
    }


def distance(some: Gradients, others: Gradients) -> float:
    """How far all gradients are from others, relative to those."""
    assert some.keys() == others.keys()
    off = sum(float((some[name] - others[name]).square().sum()) for name in others)
    return float((off / sum(float(one.square().sum()) for one in others.values())) ** 0.5)

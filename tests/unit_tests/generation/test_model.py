"""Which arguments name the weights."""

from types import SimpleNamespace

import pytest

from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.model import model_name, weights_arguments

ADAPTED = {"lora_target_modules": ["linear_qkv"]}


def arguments(**given: object) -> SimpleNamespace:
    return SimpleNamespace(**{"load": None, "pretrained_checkpoint": None, "lora_load": None} | given)


@pytest.mark.parametrize(
    ("given", "names", "model"),
    [
        ({"load": "a/model"}, ["load"], "model"),
        ({"load": "a/model", "pretrained_checkpoint": "other"}, ["load"], "model"),
        (ADAPTED | {"load": "a/adapters", "pretrained_checkpoint": "b"}, ["pretrained_checkpoint", "load"], "adapters"),
        (ADAPTED | {"load": "b", "lora_load": "a/adapters"}, ["load", "lora_load"], "adapters"),
        (
            ADAPTED | {"pretrained_checkpoint": "b", "lora_load": "a/adapters"},
            ["pretrained_checkpoint", "lora_load"],
            "adapters",
        ),
        (
            ADAPTED | {"load": "resumed", "pretrained_checkpoint": "b", "lora_load": "begun"},
            ["pretrained_checkpoint", "load"],
            "resumed",
        ),
    ],
)
def test_base_and_adapters_are_named_as_in_training(given: dict, names: list[str], model: str) -> None:
    assert weights_arguments(arguments(**given)) == names
    assert model_name(arguments(**given)) == model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--load names the checkpoint whose weights generate; it is missing"),
        (ADAPTED | {"load": "base"}, "--lora-load names the adapters; it is missing"),
        (ADAPTED | {"pretrained_checkpoint": "base"}, "--lora-load names the adapters; it is missing"),
    ],
)
def test_what_is_missing_is_named(given: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        weights_arguments(arguments(**given))

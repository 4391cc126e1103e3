"""The flags of adapters: what they become, and which are refused."""

import argparse

import pytest

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.features import lora

OTHERS = {
    "pretrained_checkpoint": "base",
    "load": None,
    "num_experts": 8,
    "ckpt_format": "torch_dist",
    "expert_tensor_parallel_size": None,
    "tensor_model_parallel_size": 4,
    "pipeline_model_parallel_size": 2,
    "untie_embeddings_and_output_weights": True,
}

OVERLAP = {"overlap_dispatch_backward_with_experts_wgrad": True}


def parse(line: str, **others: object) -> argparse.Namespace:
    parser = lora.add_megatron_arguments(lambda parser: parser)(argparse.ArgumentParser())
    return parser.parse_args(line.split(), argparse.Namespace(**OTHERS | others))


def test_nothing_is_asked_for() -> None:
    args = parse("")
    before = dict(vars(args))
    lora.check(args)
    assert vars(args) == before


def test_defaults() -> None:
    args = parse("--lora-target-modules linear_qkv router")
    lora.check(args)
    assert (args.lora_r, args.lora_alpha, args.lora_dropout, args.lora_load) == (16, 32, 0.0, None)


def test_validation_goes_on() -> None:
    args = parse("--lora-target-modules linear_qkv --lora-r 8")
    assert lora.validate_args(lambda args, defaults: (args.lora_r, defaults))(args, "defaults") == (8, "defaults")


@pytest.mark.parametrize(
    ("line", "others", "message"),
    [
        ("--lora-r 8", {}, "--lora-r was given without --lora-target-modules"),
        ("--lora-load there", {}, "--lora-load was given without"),
        ("--lora-target-modules linear_qkv --lora-r 0", {}, "--lora-r 0 .* must be 1 or more"),
        ("--lora-target-modules linear_qkv --lora-dropout 1", {}, "less than 1"),
        ("--lora-target-modules linear_qkv", {"pretrained_checkpoint": None}, "no weights to adapt"),
        ("--lora-target-modules router", {"num_experts": None}, "names router"),
        ("--lora-target-modules linear_qkv", {"ckpt_format": "torch_dcp"}, "--ckpt-format torch_dcp was given with"),
        ("--lora-target-modules linear_qkv", {"expert_tensor_parallel_size": 2}, "--expert-tensor-parallel-size 2"),
        ("--lora-target-modules linear_qkv", {"untie_embeddings_and_output_weights": False}, "size 2 without --untie"),
        ("--lora-target-modules linear_qkv", {"use_megatron_fsdp": True}, "--use-megatron-fsdp was given with"),
        ("--lora-target-modules router linear_fc2", OVERLAP, "an adapter would not get them"),
    ],
)
def test_refused(line: str, others: dict, message: str) -> None:
    with pytest.raises(AscendPatchError, match=message):
        lora.check(parse(line, **others))

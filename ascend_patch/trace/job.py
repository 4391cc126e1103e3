"""Recording one step of a Megatron-LM training job, and writing it down."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.utils import unwrap_model

from ascend_patch import manifest
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.trace import store
from ascend_patch.trace.recorder import Recorder

#: Parsed arguments with which modules are not called, or gradients not held, in the way that is recorded.
_EXCLUDED = {
    "use_megatron_fsdp": "--use-megatron-fsdp",
    "use_torch_fsdp2": "--use-torch-fsdp2",
    "overlap_moe_expert_parallel_comm": "--overlap-moe-expert-parallel-comm",
}


@contextmanager
def recorded(folder: Path, step: int, args: Namespace, model: Sequence[torch.nn.Module], optimizer: Any) -> Iterator:
    """Within: step number ``step`` is recorded, and written to ``folder`` at the end.

    Args:
        args: Megatron-LM's, parsed.
        model: the rank's model chunks.
    """
    _check(args)
    chunks, layout, coordinates = unwrap_model(model), _layout(args, len(model)), _coordinates()
    recorder = Recorder(chunks, layout, coordinates)
    loss_scale = 1.0

    def at_step() -> None:
        nonlocal loss_scale
        loss_scale = optimizer.get_loss_scale().item()
        recorder.parameters(optimizer)

    with recorder.hooks(), _before_step(optimizer, at_step):
        yield
    # What differs between layouts by definition: each micro-batch's share of the mean loss, and the part of a sequence
    # that a context parallel rank divides its loss by.
    shares = 1 if args.calculate_per_token_loss else layout.micro_batches / layout.context
    records = recorder.records(output_scale=shares / loss_scale, parameter_scale=1 / loss_scale)
    device = next(chunks[0].parameters()).device.type
    run = manifest.contributed("ascend_patch") or {}
    store.write(
        folder,
        store.RankTrace(step, torch.distributed.get_rank(), layout, coordinates, device, run, records),
    )


def _check(args: Namespace) -> None:
    flags = [flag for name, flag in _EXCLUDED.items() if getattr(args, name, False)]
    if getattr(args, "cuda_graph_impl", "none") != "none":
        flags.append("--cuda-graph-impl")
    if flags:
        raise AscendPatchError(
            f"ASCEND_PATCH_TRACE cannot record a run with {' and '.join(flags)}: modules are not called one by one, or "
            "their gradients are elsewhere. Leave it out for the run that is traced."
        )


@contextmanager
def _before_step(optimizer: Any, act: Callable[[], None]) -> Iterator[None]:
    """Within: ``act`` is called when ``optimizer.step`` is, with gradients reduced, neither unscaled nor clipped."""
    step = optimizer.step

    def act_and_step(*args, **kwargs):
        act()
        return step(*args, **kwargs)

    optimizer.step = act_and_step  # hides the method
    try:
        yield
    finally:
        del optimizer.step


def _layout(args: Namespace, chunks: int) -> store.Layout:
    return store.Layout(
        tensor=mpu.get_tensor_model_parallel_world_size(),
        pipeline=mpu.get_pipeline_model_parallel_world_size(),
        virtual=chunks,
        context=mpu.get_context_parallel_world_size(),
        data=mpu.get_data_parallel_world_size(),
        expert=mpu.get_expert_model_parallel_world_size(),
        expert_tensor=mpu.get_expert_tensor_parallel_world_size(),
        sequence_parallel=args.sequence_parallel,
        distributed_optimizer=args.use_distributed_optimizer,
        micro_batch_size=args.micro_batch_size,
        micro_batches=get_num_microbatches(),
    )


def _coordinates() -> store.Coordinates:
    return store.Coordinates(
        tensor=mpu.get_tensor_model_parallel_rank(),
        pipeline=mpu.get_pipeline_model_parallel_rank(),
        context=mpu.get_context_parallel_rank(),
        data=mpu.get_data_parallel_rank(),
        expert=mpu.get_expert_model_parallel_rank(),
        expert_tensor=mpu.get_expert_tensor_parallel_rank(),
        expert_data=mpu.get_expert_data_parallel_rank(),
    )

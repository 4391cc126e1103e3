"""Run in a process of its own: parse flags as upstream does and count the parameters of the model they describe.

Reads a JSON list of jobs from standard input, each ``{"world_size": 16, "vocabulary": 32000, "flags": [...]}``, and
prints the list of answers as its last line. Flags are validated for ``world_size`` devices, of which this process is
rank 0. Parameters are counted on the meta device, on the whole model as a single device would hold it.
"""

import json
import os
import sys

import torch
from megatron.core import parallel_state
from megatron.training import arguments, global_vars

from ascend_patch.pretrain_gpt import model_provider

PARSED = (
    *("world_size", "data_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size"),
    *("context_parallel_size", "expert_model_parallel_size", "sequence_parallel", "transformer_impl"),
    *("num_experts", "moe_router_topk", "moe_grouped_gemm", "moe_permute_fusion", "use_distributed_optimizer"),
    *("overlap_grad_reduce", "overlap_param_gather", "use_flash_attn", "bf16", "distributed_backend", "window_size"),
    *("rotary_base", "seq_length", "global_batch_size", "micro_batch_size", "add_bias_linear", "normalization"),
    *("swiglu", "num_query_groups", "lr", "min_lr", "train_iters", "lr_warmup_iters", "save_interval", "sft", "fp16"),
    *("train_data_path", "valid_data_path", "pretrained_checkpoint", "save", "load", "recompute_granularity"),
    *("cp_comm_type", "recompute_method", "recompute_num_layers", "cpu_offloading_num_layers", "optimizer_cpu_offload"),
)


def describe(world_size: int, vocabulary: int, flags: list[str]) -> dict:
    """What upstream parses from ``flags``, and the number of parameters."""
    os.environ["WORLD_SIZE"] = str(world_size)  # where upstream's parser reads it
    sys.argv[1:] = flags
    args = arguments.parse_args()
    arguments.validate_args(args)
    parsed = {name: getattr(args, name) for name in PARSED}

    args.padded_vocab_size = vocabulary
    args.tensor_model_parallel_size = args.pipeline_model_parallel_size = 1
    args.context_parallel_size = args.expert_model_parallel_size = args.expert_tensor_parallel_size = 1
    args.sequence_parallel = False
    args.use_cpu_initialization = True  # upstream then names no device, and the one below counts
    args.perform_initialization = False
    global_vars.set_args(args)
    with torch.device("meta"):
        model = model_provider()
    return {"parsed": parsed, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def main() -> None:
    """See the module's docstring."""
    jobs = json.load(sys.stdin)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    print(json.dumps([describe(**job) for job in jobs]))


if __name__ == "__main__":
    main()

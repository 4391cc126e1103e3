"""Who competes: for each, the command and the environment of its process."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from ascend_patch.features import PATCHES
from benchmarks import workload
from benchmarks.workload import MODEL
from tools.train.gemm import Mixtral

#: Applied even to stock upstream: without it the wheel's missing Makefile ends the process before the first step.
NEEDED_TO_START = frozenset({"data.compile_helpers"})


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        key: the letter by which results refer to it.
        title: what the table calls it.
        command: the arguments of the Python interpreter.
        environment: variables set for its process alone.
    """

    key: str
    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def contestants(dtype: str, same_malloc: bool = False) -> tuple[Contestant, ...]:
    """All of them in the order of their turns.

    Args:
        dtype: "bf16" or "fp32".
        same_malloc: let malloc keep memory between steps for all, as ascend_patch does on the cpu device. What is
            then left of the ratios is owed to the operators.
    """
    stock_flags = (*flags(dtype), *STOCK_FLAGS, *(() if same_malloc else ("--glibc-malloc",)))
    stock_pages = {} if same_malloc else {"THP_MEM_ALLOC_ENABLE": "0"}
    dtype_flag = ("--dtype", dtype)
    return (
        _megatron("a", "Megatron-LM, device translation only", stock_flags, {**without_patches(), **stock_pages}),
        _megatron("b", "Megatron-LM, everything on", (*flags(dtype), *GPU_FLAGS), {}),
        Contestant(
            "c",
            "transformers, AdamW",
            ("-m", "benchmarks.workers.hugging_face", *dtype_flag),
            _KEEP_LARGE_BLOCKS if same_malloc else {},
        ),
        Contestant("d", "matrix product", ("-m", "benchmarks.workers.gemm", *dtype_flag), {}),
    )


def environment(contestant: Contestant, threads: int, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The whole environment of its process; settings of ascend_patch are not inherited."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("ASCEND_PATCH")}
    return {**kept, "OMP_NUM_THREADS": str(threads), "ASCEND_PATCH_DEVICE": "cpu", **contestant.environment}


def single_process() -> dict[str, str]:
    """What torchrun and a script for GPUs would tell the only process of a job."""
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(_free_port()),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }


def _megatron(key: str, title: str, flags: tuple[str, ...], variables: Mapping[str, str]) -> Contestant:
    return Contestant(key, title, ("-m", "benchmarks.workers.megatron", *flags), {**single_process(), **variables})


#: :mod:`ascend_patch.devices.cpu.allocator` for a process that does not load it; mallopt(3).
_KEEP_LARGE_BLOCKS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_ARENA_MAX": "1",
    "THP_MEM_ALLOC_ENABLE": "1",
}

#: What stock upstream needs without TransformerEngine and Apex, and has instead of what it cannot do.
STOCK_FLAGS = (
    *("--transformer-impl", "local"),
    "--no-rope-fusion",
    "--no-persist-layer-norm",
    "--no-gradient-accumulation-fusion",
    "--no-masked-softmax-fusion",
)

#: What a script written for GPUs passes; the rest of what it turns on is upstream's default.
GPU_FLAGS = ("--moe-grouped-gemm", "--moe-permute-fusion", "--use-flash-attn")


def without_patches(kept: frozenset[str] = frozenset()) -> dict[str, str]:
    """The environment of stock upstream: nothing but the translation of the device, and the patches ``kept``."""
    return {"ASCEND_PATCH_DISABLE": ",".join(sorted({patch.id for patch in PATCHES} - NEEDED_TO_START - kept))}


def flags(dtype: str, model: Mixtral = MODEL) -> tuple[str, ...]:
    """The same for both: model, batch, optimizer, parallelism."""
    values = {
        "--num-layers": model.num_layers,
        "--hidden-size": model.hidden_size,
        "--ffn-hidden-size": model.ffn_hidden_size,
        "--num-attention-heads": model.num_attention_heads,
        "--num-query-groups": model.num_query_groups,
        "--num-experts": model.num_experts,
        "--moe-router-topk": model.moe_router_topk,
        "--moe-router-load-balancing-type": "aux_loss",
        "--moe-aux-loss-coeff": workload.AUX_LOSS_COEFF,
        "--moe-token-dispatcher-type": "alltoall",
        "--vocab-size": model.vocab_size,
        "--tokenizer-type": "NullTokenizer",
        "--make-vocab-size-divisible-by": 1,
        "--seq-length": model.seq_length,
        "--max-position-embeddings": model.seq_length,
        "--position-embedding-type": "rope",
        "--normalization": "RMSNorm",
        "--norm-epsilon": workload.NORM_EPSILON,
        "--attention-dropout": 0.0,
        "--hidden-dropout": 0.0,
        "--init-method-std": 0.02,
        "--micro-batch-size": workload.MICRO_BATCH,
        "--global-batch-size": workload.MICRO_BATCH,
        "--train-iters": 10**6,
        "--lr": workload.LEARNING_RATE,
        "--lr-decay-style": "constant",
        "--weight-decay": workload.WEIGHT_DECAY,
        "--adam-beta1": workload.BETAS[0],
        "--adam-beta2": workload.BETAS[1],
        "--clip-grad": workload.CLIP_GRAD,
        "--seed": workload.SEED,
        "--num-workers": 0,
        "--eval-iters": 0,
        "--eval-interval": 10**6,
        "--log-interval": 1,
        "--distributed-backend": "nccl",
    }
    switches = (
        "--group-query-attention",
        "--swiglu",
        "--disable-bias-linear",
        "--untie-embeddings-and-output-weights",
        "--use-distributed-optimizer",
        "--overlap-grad-reduce",
        "--overlap-param-gather",
        *(("--bf16",) if dtype == "bf16" else ()),
    )
    return (*(str(word) for pair in values.items() for word in pair), *switches)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]

"""Megatron's modules on the host, as the only rank of a job."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch

from ascend_patch.devices.cpu import CpuDevice


@pytest.fixture(scope="package")
def megatron_on_cpu() -> Iterator[None]:
    """Device, process group and Megatron's groups and generators; all gone afterwards."""
    device = CpuDevice()
    device.install()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        device.revert()


@pytest.fixture(autouse=True)
def _fresh_seed(megatron_on_cpu: None) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"torch.manual_seed({seed})")  # pytest shows it when the test fails
    torch.manual_seed(seed)


@pytest.fixture
def transformer_config() -> Callable:
    """transformer_config(**changes): a small Mixtral's TransformerConfig in float32."""
    from megatron.core.transformer import TransformerConfig

    def make(**changes) -> TransformerConfig:
        fields = {
            "num_layers": 2,
            "hidden_size": 48,
            "ffn_hidden_size": 40,
            "num_attention_heads": 6,
            "num_query_groups": 2,
            "num_moe_experts": 3,
            "moe_ffn_hidden_size": 40,
            "moe_router_topk": 2,
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "params_dtype": torch.float32,
            "gradient_accumulation_fusion": False,
        }
        return TransformerConfig(**{**fields, **changes})

    return make

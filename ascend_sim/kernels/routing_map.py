"""What both ways of the permutation by a routing map share: its constraints, and gradients of its probabilities."""

import torch

from ascend_sim.errors import require
from ascend_sim.kernels.checks import require_dim, require_dtype

#: Sources of these operators.
CANN = "https://www.hiascend.com/document/detail/zh/CANNCommunityEdition/83RC1/API/aolapi/context"
HOST = "gitcode.com/cann/ops-transformer, moe"

_LARGEST_INDEX = 16_777_215  # indices are sorted as float32
_TOPK_LIMIT = 512


def check_routing_map(routing_map: torch.Tensor, tokens: int) -> None:
    """bool or int8, ``[tokens, experts]``."""
    require_dtype("routing_map", routing_map, (torch.bool, torch.int8))
    require_dim("routing_map", routing_map, 2)
    require(routing_map.shape[0] == tokens, f"routing_map has {routing_map.shape[0]} rows, needed: {tokens} tokens")
    require(
        max(routing_map.shape) < _LARGEST_INDEX,
        f"routing_map has shape {tuple(routing_map.shape)}, allowed: less than {_LARGEST_INDEX} either way",
    )


def check_uniform(routing_map: torch.Tensor, topk: int) -> None:
    """Every token has `topk` experts, fewer than 512."""
    require(topk < _TOPK_LIMIT, f"topk is {topk}, allowed: less than {_TOPK_LIMIT}")
    experts = routing_map.bool().sum(1)
    wrong = int((experts != topk).sum())
    require(wrong == 0, f"{wrong} tokens have another number of experts than num_out_tokens // tokens = {topk}")


def scatter_probs(
    row_grad: torch.Tensor, indices: torch.Tensor, routing_map: torch.Tensor, drop_and_pad: bool
) -> torch.Tensor:
    """Gradients of rows, back in ``[tokens, experts]``."""
    tokens, experts = routing_map.shape
    by_expert = row_grad.new_zeros(experts, tokens)
    if drop_and_pad:
        by_expert.scatter_add_(1, indices.view(experts, -1), row_grad.view(experts, -1))
    else:
        by_expert.masked_scatter_(routing_map.bool().T, row_grad)
    return by_expert.T.contiguous()

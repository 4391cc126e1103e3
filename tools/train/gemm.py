"""How fast this machine multiplies matrices, and how many operations a Mixtral needs for one token."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Mixtral:
    """The sizes that count, by upstream's names."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    num_experts: int
    moe_router_topk: int
    vocab_size: int
    seq_length: int

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of the matrix products for one token, forward and backward.

        Two for every weight a token meets (of the experts, those it is routed to) and for the causal half of
        both attention products; the backward pass takes twice the forward pass. Recomputation, norms, rotary
        embedding, softmax and the optimizer are not counted, as usual for model FLOPs (PaLM, appendix B).
        """
        hidden = self.hidden_size
        key_value = hidden * self.num_query_groups // self.num_attention_heads
        projections = hidden * (2 * hidden + 2 * key_value)
        experts = 3 * self.moe_router_topk * hidden * self.ffn_hidden_size + hidden * self.num_experts
        attention = hidden * self.seq_length  # query with keys and weights with values, half of the positions
        per_layer = projections + experts + attention
        return 3 * 2 * (self.num_layers * per_layer + hidden * self.vocab_size)


def gemm_rate(device: str, threads: int, size: int = 2048, seconds: float = 1.0, dtype: str = "bfloat16") -> float:
    """Operations a second of a square matrix product, the best of those that fit in ``seconds``.

    Args:
        device: "cpu", "cuda" or "npu".
        threads: on the cpu, the threads to use.
        size: rows and columns of the matrices.
        seconds: how long to try.
        dtype: torch's name of it.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
        out = left @ right
        best = float("inf")
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            if device != "cpu":
                torch.accelerator.synchronize()
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * size**3 / best

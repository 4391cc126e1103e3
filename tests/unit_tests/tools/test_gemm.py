"""The operations a token costs, against a count of every product of a model."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tools.train.gemm import Mixtral, gemm_rate

SMALL = Mixtral(
    num_layers=3,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=8,
    num_query_groups=2,
    num_experts=4,
    moe_router_topk=2,
    vocab_size=100,
    seq_length=16,
)


def test_flops_of_transformers_mixtral():
    """torch counts the products that transformers' implementation really does, forward and backward."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=SMALL.vocab_size,
        hidden_size=SMALL.hidden_size,
        intermediate_size=SMALL.ffn_hidden_size,
        num_hidden_layers=SMALL.num_layers,
        num_attention_heads=SMALL.num_attention_heads,
        num_key_value_heads=SMALL.num_query_groups,
        num_local_experts=SMALL.num_experts,
        num_experts_per_tok=SMALL.moe_router_topk,
        attn_implementation="eager",
    )
    # eager: one expert after the other, so that every expert's products are counted as they are
    config._experts_implementation = "eager"
    model = MixtralForCausalLM(config)
    tokens = torch.randint(0, SMALL.vocab_size, (1, SMALL.seq_length))
    # The embedding's input needs no gradient, but the first layer's input does: all products have both backward parts.
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens).loss.backward()
    square_attention = SMALL.num_layers * 2 * SMALL.hidden_size * SMALL.seq_length  # eager also does the masked half
    expected = SMALL.seq_length * (SMALL.flops_per_token + 3 * square_attention)
    assert counter.get_total_flops() == expected


def test_a_mixtral_8x7b():
    """12.9B active parameters, of which the embedding (0.13B) multiplies nothing: 6 FLOPs each, and attention."""
    mixtral = Mixtral(32, 4096, 14336, 32, 8, 8, 2, 32000, 4096)
    attention = 6 * 32 * 4096 * 4096
    assert abs((mixtral.flops_per_token - attention) / 6 / 1e9 - (12.88 - 0.13)) < 0.01


def test_the_rate_of_this_machine():
    threads = torch.get_num_threads()
    rate = gemm_rate("cpu", threads=1, size=256, seconds=0.05)
    assert 1e8 < rate < 1e14
    assert torch.get_num_threads() == threads

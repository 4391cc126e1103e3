"""The FLOP formula behind `gemm_fraction`, counted by hand; PyTorch's counter is asked in ../tools/test_gemm.py."""

from benchmarks.workload import MODEL
from tools.train.gemm import Mixtral


def test_a_count_by_hand() -> None:
    """One layer, 4 wide, 2 heads on 1 key head, experts of width 3, 1 of 2 a token, 5 tokens, 8 positions."""
    model = Mixtral(
        num_layers=1,
        hidden_size=4,
        ffn_hidden_size=3,
        num_attention_heads=2,
        num_query_groups=1,
        num_experts=2,
        moe_router_topk=1,
        vocab_size=5,
        seq_length=8,
    )
    query_and_output = 2 * 4 * 4
    key_and_value = 2 * 4 * 2
    scores_and_values = 2 * (8 / 2) * 4
    router = 4 * 2
    expert = 3 * 4 * 3
    logits = 4 * 5
    multiplications = query_and_output + key_and_value + scores_and_values + router + expert + logits
    assert model.flops_per_token == 3 * 2 * multiplications


def test_the_model_of_the_benchmark() -> None:
    projections = 2 * 512 * 512 + 2 * 512 * 128
    experts = 2 * 3 * 512 * 1792 + 512 * 8
    assert MODEL.flops_per_token == 6 * (4 * (projections + experts + 512 * 1024) + 512 * 32000)

"""Small models, layouts of few ranks, and the flags with which Megatron-LM trains one in the other."""

from dataclasses import replace

from ascend_patch.planning.layout import Layout, Training
from ascend_patch.planning.models import Model

MIXTRAL = Model("small", 4, 128, 256, 8, 4, 999, 4, 2)
MISTRAL = replace(MIXTRAL, experts=0, topk=0)
TRAINING = Training(MIXTRAL, sequence=256, batch=8)
LAYOUTS = {
    "one": Layout(1, micro=2),
    "tp2": Layout(1, tp=2, etp=2, micro=2),
    "ep2": Layout(2, ep=2, micro=2),
    "pp2": Layout(1, pp=2, micro=2),
    "cp2": Layout(1, cp=2, micro=2),
    "cp2_tp2_ep2": Layout(1, cp=2, tp=2, ep=2, micro=2),
    "vpp2": Layout(1, pp=2, vpp=2, micro=2),
    "tp2_ep2": Layout(1, tp=2, ep=2, micro=2),
    "recompute": Layout(2, ep=2, micro=2, recompute=True),
    "tp2_ep2_etp2_recompute": Layout(2, tp=2, ep=2, etp=2, micro=2, recompute=True),
}


def flags(training: Training, layout: Layout) -> dict[str, object]:
    """For ``tests.system_tests.mixtral.tiny``."""
    model = training.model
    found: dict[str, object] = {
        "num_layers": model.layers,
        "hidden_size": model.hidden,
        "ffn_hidden_size": model.ffn,
        "num_attention_heads": model.heads,
        "num_query_groups": model.groups,
        "vocab_size": model.vocab,
        "make_vocab_size_divisible_by": 1,
        "seq_length": training.sequence,
        "max_position_embeddings": training.sequence,
        "global_batch_size": training.batch,
        "micro_batch_size": layout.micro,
        "tensor_model_parallel_size": layout.tp,
        "sequence_parallel": layout.tp > 1,
        "pipeline_model_parallel_size": layout.pp,
        "context_parallel_size": layout.cp,
    }
    if model.experts:
        found |= {"expert_model_parallel_size": layout.ep, "expert_tensor_parallel_size": layout.etp}
    else:
        found |= dict.fromkeys(
            ("num_experts", "moe_router_topk", "moe_router_load_balancing_type", "moe_aux_loss_coeff"), False
        )
        found |= dict.fromkeys(("moe_token_dispatcher_type", "moe_grouped_gemm", "moe_permute_fusion"), False)
    if layout.vpp > 1:
        found["num_layers_per_virtual_pipeline_stage"] = model.layers // (layout.pp * layout.vpp)
    if layout.recompute:
        found |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return found

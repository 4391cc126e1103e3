"""Arguments of a tiny Mixtral, as a script written for GPUs has them."""

TINY = {
    "num_layers": 2,
    "hidden_size": 128,
    "ffn_hidden_size": 256,
    "num_attention_heads": 8,
    "group_query_attention": True,
    "num_query_groups": 4,
    "seq_length": 128,
    "max_position_embeddings": 128,
    "position_embedding_type": "rope",
    "rotary_base": 1000000,
    "normalization": "RMSNorm",
    "swiglu": True,
    "disable_bias_linear": True,
    "untie_embeddings_and_output_weights": True,
    "attention_dropout": 0,
    "hidden_dropout": 0,
    "num_experts": 4,
    "moe_router_topk": 2,
    "moe_router_load_balancing_type": "aux_loss",
    "moe_aux_loss_coeff": 1e-2,
    "moe_token_dispatcher_type": "alltoall",
    "moe_grouped_gemm": True,
    "moe_permute_fusion": True,
    "use_flash_attn": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
    "use_distributed_optimizer": True,
    "bf16": True,
    "distributed_backend": "nccl",
    "micro_batch_size": 2,
    "global_batch_size": 8,
    "lr": 1e-3,
    "lr_decay_style": "constant",
    "weight_decay": 0.1,
    "clip_grad": 1.0,
    "train_iters": 3,
    "log_interval": 1,
    "eval_iters": 0,
    "eval_interval": 1000,
    "seed": 42,
    "mock_data": True,
    "tokenizer_type": "NullTokenizer",
    "vocab_size": 1000,
    "no_create_attention_mask_in_dataloader": True,
}

ONE: dict = {}
TP2_SP = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
EP2 = {"expert_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
CAPACITY = {"moe_expert_capacity_factor": 1.0}
TP2_PP2_EP2 = TP2_SP | PP2 | EP2


def title(layout: dict) -> str:
    """ "TP2 PP2 EP2" for the flags of such a layout."""
    sizes = {
        "".join(word[0] for word in name.removesuffix("_parallel_size").split("_") if word != "model"): size
        for name, size in layout.items()
        if name.endswith("_parallel_size")
    }
    if "num_layers_per_virtual_pipeline_stage" in layout:
        sizes["vp"] = 2  # stages of each rank, in these tests
    names = [f"{name.upper()}P{size}" for name, size in sizes.items()]
    types = layout.get("cp_comm_type", ())
    names += [types] if isinstance(types, str) else types
    return " ".join(names) or "one process"


def tiny(**changes: object) -> list[str]:
    """Command line of the tiny Mixtral; ``flag=False`` leaves a flag out, ``flag=value`` sets or adds it.

    A tuple gives several values to one flag.
    """
    line = []
    for name, value in {**TINY, **changes}.items():
        if value is not False:
            line.append("--" + name.replace("_", "-"))
            values = value if isinstance(value, tuple) else (value,)
            line += [] if value is True else [str(one) for one in values]
    return line

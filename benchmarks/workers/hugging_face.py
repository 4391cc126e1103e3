"""``MixtralForCausalLM`` of transformers in the loop that its users write.

Its defaults where they are the fast ones: attention through ``scaled_dot_product_attention``, experts as
transformers chooses. AdamW is the fused one of torch, and in bf16 the parameters, their gradients and the
optimizer's state are all bf16: less than the float32 master weights that Megatron keeps, so the comparison
leans towards this side.
"""

import argparse

import torch
from torch.utils.data import DataLoader
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks import workload
from benchmarks.gate import Gate
from tools.train.gemm import Mixtral


def config(model: Mixtral = workload.MODEL, use_cache: bool = False) -> MixtralConfig:
    """The workload's model by transformers' names."""
    return MixtralConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        num_local_experts=model.num_experts,
        num_experts_per_tok=model.moe_router_topk,
        max_position_embeddings=model.seq_length,
        rms_norm_eps=workload.NORM_EPSILON,
        router_aux_loss_coef=workload.AUX_LOSS_COEFF,
        output_router_logits=not use_cache,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=use_cache,
    )


def main() -> None:
    """Train until the gate closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=workload.DTYPES, required=True)
    dtype = workload.TORCH_DTYPES[parser.parse_args().dtype]
    gate = Gate.on_standard_streams()
    torch.manual_seed(workload.SEED)
    model = MixtralForCausalLM._from_config(config(), dtype=dtype).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=workload.LEARNING_RATE,
        betas=workload.BETAS,
        weight_decay=workload.WEIGHT_DECAY,
        fused=True,
    )
    facts: dict[str, object] = {"parameters": model.num_parameters()}
    for batch in DataLoader(workload.RandomTokens(10**6), batch_size=workload.MICRO_BATCH):
        gate.step(**facts)
        # transformers shifts the labels itself. Given position_ids, it would look for packed sequences.
        output = model(input_ids=batch["tokens"], labels=batch["tokens"])
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), workload.CLIP_GRAD)
        optimizer.step()
        optimizer.zero_grad()
        facts["loss"] = (output.loss - workload.AUX_LOSS_COEFF * output.aux_loss).item()


if __name__ == "__main__":
    main()

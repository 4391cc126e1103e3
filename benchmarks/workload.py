"""What every contestant trains: the model's sizes, the batch, the tokens and the optimizer's settings."""

import torch
from torch.utils.data import Dataset

from tools.train.gemm import Mixtral

#: Mixtral 8x7B with an eighth of the width and of the depth; vocabulary, experts and head ratios as they are.
MODEL = Mixtral(
    num_layers=4,
    hidden_size=512,
    ffn_hidden_size=1792,
    num_attention_heads=8,
    num_query_groups=2,
    num_experts=8,
    moe_router_topk=2,
    vocab_size=32000,
    seq_length=1024,
)
#: What ``benchmarks.npu_work`` counts.
NPU_MODELS = {
    "tiny": Mixtral(
        num_layers=2,
        hidden_size=128,
        ffn_hidden_size=256,
        num_attention_heads=8,
        num_query_groups=4,
        num_experts=4,
        moe_router_topk=2,
        vocab_size=1024,
        seq_length=128,
    ),
    "eighth": MODEL,
}
MICRO_BATCH = 2
TOKENS_PER_STEP = MICRO_BATCH * MODEL.seq_length

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DTYPES = tuple(TORCH_DTYPES)
AUX_LOSS_COEFF = 1e-2
NORM_EPSILON = 1e-5
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
CLIP_GRAD = 1.0
SEED = 1234


class RandomTokens(Dataset):
    """Uniform random sequences; sample ``i`` is the same in every process.

    Items have the names of Megatron's datasets: ``tokens``, ``labels``, ``position_ids`` (int64 ``[seq]``) and
    ``loss_mask`` (float32 ``[seq]``).
    """

    def __init__(self, num_samples: int, model: Mixtral = MODEL) -> None:
        self._num_samples = num_samples
        self._model = model

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(SEED + int(index))
        text = torch.randint(self._model.vocab_size, (self._model.seq_length + 1,), generator=generator)
        return {
            "tokens": text[:-1],
            "labels": text[1:],
            "position_ids": torch.arange(self._model.seq_length),
            "loss_mask": torch.ones(self._model.seq_length),
        }


ATTENTION_HEADS = (32, 8, 16)
"""Query heads, key heads and head size of attention alone: Mixtral's at an eighth of the width."""

"""Small random models as Hugging Face folders, the logits that transformers computes, and Megatron's names for both."""

import io
import os
import re
from functools import cache
from pathlib import Path

import torch

from tools.train.tokenizer import write_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY = 301
"""Odd, so that every layout pads it."""
MIXTRAL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 10,  # neither hidden / heads nor a power of two
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}
#: The ratios of Mixtral 8x22B: 6 heads a group, ffn 8/3 of hidden, another vocabulary.
MIXTRAL_8X22B = MIXTRAL | {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_attention_heads": 24,
    "head_dim": 4,
    "vocab_size": VOCABULARY + 7,
    "num_hidden_layers": 2,
}
_DENSE = {name: value for name, value in MIXTRAL.items() if "experts" not in name}
#: v0.1 has a sliding window, which must be shorter than the test's sequences to be seen.
MISTRAL_V01 = _DENSE | {"sliding_window": 7, "rope_theta": 1e4}
MISTRAL_V03 = _DENSE | {"vocab_size": 32768, "hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}


def untrained_model(**shape: object) -> torch.nn.Module:
    """A Mixtral, or a Mistral where there are no experts, as transformers initialises it, with a new seed each time."""
    print(f"torch.manual_seed({torch.seed()})")
    return _model(**shape)


def _model(**shape: object) -> torch.nn.Module:
    from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

    Config, Model = (
        (MixtralConfig, MixtralForCausalLM) if "num_local_experts" in shape else (MistralConfig, MistralForCausalLM)
    )
    return Model(Config(**shape, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False))


def random_model(**shape: object) -> torch.nn.Module:
    """A Mixtral, or a Mistral where there are no experts, whose logits depend on every parameter.

    The initialisation of transformers is so small that experts and heads could be swapped without a trace.
    """
    model = _model(**shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=1.0 if "embed" in name else parameter.shape[-1] ** -0.5)
    return model


def save(model: torch.nn.Module, folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> Path:
    """Save ``model`` in ``dtype``, with a generation config and a tokenizer; returns ``folder``.

    Args:
        options: for ``save_pretrained``.
    """
    model.to(dtype).save_pretrained(folder, **options)
    write_tokenizer(_sentencepiece(), folder)
    return folder


def load(folder: Path) -> torch.nn.Module:
    """The model of ``folder`` as transformers reads it, in float32. Every parameter must be there.

    Raises:
        AssertionError: transformers had to make up a parameter, or found one that it does not know.
    """
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """``tokens [sequences, length]`` -> float32 ``[sequences, length, vocabulary]``."""
    with torch.no_grad():
        return load(folder)(tokens).logits


def random_tokens(vocabulary: int, sequences: int = 4, length: int = 32) -> torch.Tensor:
    """Token ids, with the first and the last of the vocabulary among them."""
    tokens = torch.randint(0, vocabulary, (sequences, length))
    tokens[0, 0], tokens[-1, -1] = vocabulary - 1, 0
    return tokens


def megatron_arguments(shape: dict, **changes: object) -> dict:
    """The flags of a training job of ``shape``, for :func:`mixtral.tiny`; ``changes`` come on top."""
    flags = {
        "num_layers": shape["num_hidden_layers"],
        "hidden_size": shape["hidden_size"],
        "ffn_hidden_size": shape["intermediate_size"],
        "num_attention_heads": shape["num_attention_heads"],
        "num_query_groups": shape["num_key_value_heads"],
        "kv_channels": shape["head_dim"],
        "max_position_embeddings": shape["max_position_embeddings"],
        "rotary_base": int(shape["rope_theta"]),
        "norm_epsilon": shape["rms_norm_eps"],
        "vocab_size": shape["vocab_size"],
        "seq_length": 32,
        "bf16": False,
        "no_gradient_accumulation_fusion": True,
    }
    if "num_local_experts" in shape:
        flags |= {"num_experts": shape["num_local_experts"], "moe_router_topk": shape["num_experts_per_tok"]}
    else:
        from tests.system_tests.mixtral import TINY

        flags |= {name: False for name in TINY if name.startswith("moe_") or name == "num_experts"}
    if shape["sliding_window"]:
        flags["window_size"] = f"{shape['sliding_window'] - 1},0"
    return flags | changes


@cache
def _sentencepiece() -> bytes:
    """A SentencePiece model of ``VOCABULARY`` pieces: bytes, letters, and what the words of this file consist of."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(re.findall("[a-z ]{3,}", Path(__file__).read_text().lower())),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()

"""The shape of a Mixtral or Mistral: its numbers, its tensors, and both as Hugging Face writes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ascend_patch.checkpoint.dtypes import dtype_name
from ascend_patch.checkpoint.errors import CheckpointError

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

_NUMBERS = {
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "norm_epsilon": "rms_norm_eps",
}
"""Field -> its key in config.json; each must be there. The defaults of the configuration classes are not trusted:
they are those of one release of one model, and have changed."""

_EXPERTS = {"num_experts": "num_local_experts", "topk": "num_experts_per_tok"}


@dataclass(frozen=True)
class ModelShape:
    """The numbers that decide which tensors a model has, what their shapes are, and what it computes with them.

    Raises:
        CheckpointError: a number is not positive, or the heads do not fall into groups of one size.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    """Without padding."""
    num_experts: int = 0
    """0: dense, a Mistral."""
    topk: int = 0
    """Experts of a token; 0 if dense."""
    rotary_base: float = 1e6
    norm_epsilon: float = 1e-5
    max_position_embeddings: int = 32768
    sliding_window: int | None = None
    """Tokens that one attends to, itself among them; None: all before it."""
    tied: bool = False
    """The output layer is the embedding."""

    def __post_init__(self) -> None:
        sizes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "head_dim")
        for name in (*sizes, "vocab_size", "max_position_embeddings"):
            _whole(name, getattr(self, name), 1)
        if self.num_attention_heads % self.num_query_groups:
            raise CheckpointError(
                f"{self.num_attention_heads} attention heads cannot share {self.num_query_groups} key and value heads: "
                f"the first number must be a multiple of the second."
            )
        _whole("num_experts", self.num_experts, 0)
        _whole("topk", self.topk, 0)
        if self.sliding_window is not None:
            _whole("sliding_window", self.sliding_window, 1)
        if self.topk > self.num_experts or bool(self.topk) != bool(self.num_experts):
            raise CheckpointError(f"A token cannot go to {self.topk} of {self.num_experts} experts.")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape, in the order of the model.

        Names, shapes and orientation are those of Hugging Face's `MixtralForCausalLM` and `MistralForCausalLM` on disk.
        """
        hidden, vocab = self.hidden_size, self.vocab_size
        found: dict[str, tuple[int, ...]] = {EMBEDDING: (vocab, hidden)}
        for layer in range(self.num_layers):
            found |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer().items()}
        found[FINAL_NORM] = (hidden,)
        if not self.tied:
            found[HEAD] = (vocab, hidden)
        return found

    def _layer(self) -> dict[str, tuple[int, ...]]:
        hidden, ffn = self.hidden_size, self.ffn_hidden_size
        queries, values = self.num_attention_heads * self.head_dim, self.num_query_groups * self.head_dim
        found: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (values, hidden),
            "self_attn.v_proj.weight": (values, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "post_attention_layernorm.weight": (hidden,),
        }
        if not self.num_experts:
            gate, up, down = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
            return found | {gate: (ffn, hidden), up: (ffn, hidden), down: (hidden, ffn)}
        found["block_sparse_moe.gate.weight"] = (self.num_experts, hidden)
        for expert in range(self.num_experts):
            w1, w2, w3 = (f"block_sparse_moe.experts.{expert}.w{i}.weight" for i in (1, 2, 3))
            found |= {w1: (ffn, hidden), w2: (hidden, ffn), w3: (ffn, hidden)}
        return found

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> "ModelShape":
        """The shape that a config.json describes, as transformers 4.x or 5.x writes it.

        Args:
            config: its content.
            where: what error messages call it.

        Raises:
            CheckpointError: another architecture, a missing number, or something that Megatron-LM's model would not
                compute in the same way.
        """
        moe = _is_mixtral(config, where)
        keys = _NUMBERS | (_EXPERTS if moe else {})
        missing = sorted(key for key in keys.values() if config.get(key) is None)
        if missing:
            raise CheckpointError(f"{where} lacks {', '.join(missing)}: is it the file of the original model?")
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise CheckpointError(f"{where} has hidden_act {activation!r}; of Mixtral and Mistral it is 'silu'.")
        numbers = {name: config[key] for name, key in keys.items()}
        try:
            return cls(
                **numbers,
                head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
                rotary_base=_rotary_base(config),
                max_position_embeddings=config.get("max_position_embeddings", 4096 * 32),
                sliding_window=config.get("sliding_window", None if moe else 4096),
                tied=config.get("tie_word_embeddings", False),
            )
        except (CheckpointError, TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(f"{where}: {error}") from error

    def to_hf(self, dtype: torch.dtype) -> dict[str, Any]:
        """A config.json for the model, which transformers 4.x and 5.x read alike.

        Generation settings and token ids other than Mixtral's and Mistral's own are not known here: prefer the
        config.json of the original model where there is one.
        """
        moe = bool(self.num_experts)
        keys = _NUMBERS | (_EXPERTS if moe else {})
        return {
            "architectures": ["MixtralForCausalLM" if moe else "MistralForCausalLM"],
            "model_type": "mixtral" if moe else "mistral",
            **{key: getattr(self, name) for name, key in keys.items()},
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            # 5.x reads rope_theta too; 4.x takes its default, without a word, where there is only rope_parameters.
            "rope_theta": self.rotary_base,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": dtype_name(dtype),
        }


def _whole(name: str, found: object, least: int) -> None:
    if not isinstance(found, int) or found < least:
        raise CheckpointError(f"{name} is {found!r}, but must be a whole number, {least} or more.")


def _is_mixtral(config: Mapping[str, Any], where: str) -> bool:
    known = {"mixtral": "MixtralForCausalLM", "mistral": "MistralForCausalLM"}
    architectures = config.get("architectures") or [known.get(str(config.get("model_type")), config.get("model_type"))]
    if len(architectures) == 1:
        for model_type, architecture in known.items():
            if architectures[0] == architecture and config.get("model_type", model_type) == model_type:
                return model_type == "mixtral"
    raise CheckpointError(
        f"{where} describes {', '.join(map(str, architectures))} (model_type {config.get('model_type')!r}); "
        f"only {' and '.join(known.values())} can be converted."
    )


def _rotary_base(config: Mapping[str, Any]) -> float:
    """From 5.x's rope_parameters or 4.x's rope_theta; scaled rotary embeddings are not those of these models."""
    parameters = config.get("rope_parameters") or {}
    scaling = {**parameters, **(config.get("rope_scaling") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default" or scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(
            f"rotary embeddings of type {kind!r}; Mixtral's and Mistral's are plain ('default'), and only those can be "
            f"converted."
        )
    base = parameters.get("rope_theta", config.get("rope_theta"))
    if base is None:
        raise CheckpointError("neither rope_parameters nor rope_theta is there: is it the file of the original model?")
    return float(base)

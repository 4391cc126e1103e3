"""The attention modules against upstream's local one: masks, windows, grouped queries, packed sequences."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from tests.unit_tests.ops.checks import relative_error

SEQUENCE, BATCH, HEADS, GROUPS, SIZE = 13, 2, 6, 2, 8


def build(name: str, config):
    from megatron.core.transformer import dot_product_attention
    from megatron.core.transformer.enums import AttnMaskType

    from ascend_patch.modules import attention

    module = dot_product_attention if name == "upstream" else attention
    kind = "DotProductAttention" if name == "upstream" else name
    return getattr(module, kind)(
        config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self", softmax_scale=None
    )


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = [(SEQUENCE, BATCH, heads, SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def causal_mask() -> torch.Tensor:
    """True where attention is not allowed, ``[1, 1, s, s]``."""
    return torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)[None, None]


def agree(one: torch.nn.Module, other: torch.nn.Module, qkv: list[torch.Tensor], mask: torch.Tensor | None) -> None:
    """Same output and gradients."""
    grad = torch.randn(SEQUENCE, BATCH, HEADS * SIZE)
    results = []
    for module in (one, other):
        output = module(*qkv, mask)
        assert output.shape == grad.shape
        results.append([output.detach(), *torch.autograd.grad(output, qkv, grad)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["DotProductAttention", "CausalDotProductAttention"])
@pytest.mark.parametrize("window", [None, (3, 0)])
def test_causal(transformer_config: Callable, name: str, window: tuple[int, int] | None) -> None:
    config = transformer_config(window_size=window, masked_softmax_fusion=False)
    mask = causal_mask() if window is None else None  # upstream makes the mask of a window itself
    agree(build(name, config), build("upstream", config), inputs(), mask)


def test_explicit_mask(transformer_config: Callable) -> None:
    """Documents in one sequence: the mask allows less than causality does."""
    config = transformer_config(masked_softmax_fusion=False)
    document = torch.arange(SEQUENCE) // 5
    mask = causal_mask() | (document[:, None] != document)
    agree(build("DotProductAttention", config), build("upstream", config), inputs(), mask)


def test_stand_in_for_transformer_engine_ignores_the_mask_of_a_causal_layer(transformer_config: Callable) -> None:
    module = build("CausalDotProductAttention", transformer_config())
    qkv = inputs()
    everything_masked = torch.ones_like(causal_mask())
    assert torch.equal(module(*qkv, everything_masked), module(*qkv, None))


def test_packed_sequences(transformer_config: Callable) -> None:
    """Each packed sequence gets what it gets alone."""
    from megatron.core.packed_seq_params import PackedSeqParams

    module = build("CausalDotProductAttention", transformer_config())
    lengths = [5, 1, 7]
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    q, k, v = (torch.randn(sum(lengths), heads, SIZE) for heads in (HEADS, GROUPS, GROUPS))
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends)
    output = module(q, k, v, None, packed_seq_params=packed)
    assert output.shape == (sum(lengths), HEADS * SIZE)
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        alone = module(*(t[begin:end, None] for t in (q, k, v)), None)
        assert relative_error(output[begin:end], alone[:, 0]) < 1e-5


def test_dropout_draws_from_the_tensor_parallel_state(transformer_config: Callable) -> None:
    """As upstream: the default state is left as it was, and evaluation drops nothing."""
    module = build("CausalDotProductAttention", transformer_config(attention_dropout=0.5))
    qkv = inputs()
    before = torch.get_rng_state()
    first, second = module(*qkv, None), module(*qkv, None)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    module.eval()
    assert torch.equal(module(*qkv, None), module(*qkv, None))


def test_attention_bias_is_refused(transformer_config: Callable) -> None:
    from ascend_patch.engine.errors import AscendPatchError

    module = build("DotProductAttention", transformer_config())
    with pytest.raises(AscendPatchError, match="bias"):
        module(*inputs(), None, attention_bias=torch.zeros(1))


def split(config, name: str | None, kind: str = "CausalDotProductAttention"):
    """The module of a rank of two; nothing is sent before its forward."""
    from megatron.core import parallel_state
    from megatron.core.transformer.enums import AttnMaskType

    from ascend_patch.modules import attention

    groups = SimpleNamespace(
        tp=parallel_state.get_tensor_model_parallel_group(), cp=SimpleNamespace(size=lambda: 2, rank=lambda: 0)
    )
    return getattr(attention, kind)(
        config, 1, AttnMaskType.causal, "self", cp_comm_type=name, pg_collection=groups, attention_dropout=None
    )


@pytest.mark.parametrize("name", [None, "p2p", "a2a", "all_gather"])
def test_context_parallelism(transformer_config: Callable, name: str | None) -> None:
    config = transformer_config(context_parallel_size=2)
    module = split(config, name)
    assert module.config is config
    assert module.config.context_parallel_size == 2
    assert module.cp_comm_type == (name or "p2p").replace("_", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_dropout": 0.1}, "--attention-dropout 0.1"),
        ({"softmax_type": "off-by-one"}, "--softmax-type off-by-one"),
        ({"window_size": (3, 0)}, "--window-size"),
    ],
)
def test_layers_that_cannot_be_split(transformer_config: Callable, changes: dict, words: str) -> None:
    from ascend_patch.engine.errors import AscendPatchError

    with pytest.raises(AscendPatchError, match=words):
        split(transformer_config(context_parallel_size=2, **changes), "p2p")


def test_calls_that_cannot_be_split(transformer_config: Callable) -> None:
    from megatron.core.packed_seq_params import PackedSeqParams

    from ascend_patch.engine.errors import AscendPatchError

    config = transformer_config(context_parallel_size=2)
    with pytest.raises(AscendPatchError, match="--no-create-attention-mask-in-dataloader"):
        split(config, "p2p", "DotProductAttention")(*inputs(), causal_mask())
    ends = torch.tensor([0, SEQUENCE])
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends)
    tokens = [t[:, 0] for t in inputs()]
    with pytest.raises(AscendPatchError, match="--cp-comm-type p2p takes no packed sequences"):
        split(config, "p2p")(*tokens, None, packed_seq_params=packed)
    packed.local_cp_size = 1
    with pytest.raises(AscendPatchError, match="--hybrid-context-parallel"):
        split(config, "a2a")(*tokens, None, packed_seq_params=packed)

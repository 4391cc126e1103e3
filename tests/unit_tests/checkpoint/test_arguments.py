"""Arguments of checkpoints: what is written is read again, in each form in which upstream saves it."""

import argparse

import pytest
import torch
from hypothesis import given, settings

from ascend_patch.checkpoint import arguments
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.shape import ModelShape
from tests.unit_tests.checkpoint.models import laid_out

SHAPE = ModelShape(4, 48, 40, 6, 2, 10, 37, 4, 2, rotary_base=12345.5, norm_epsilon=3e-6, sliding_window=7)


def written(shape: ModelShape = SHAPE, layout: Layout | None = None, padded: int = 40, **changes) -> argparse.Namespace:
    args = arguments.write(shape, layout or Layout(), padded, torch.bfloat16, Build(), "torch")
    return argparse.Namespace(**{**vars(args), **changes})


@settings(deadline=None)
@given(laid_out())
def test_what_is_written_is_read(case):
    shape, layout = case
    padded = arguments.padded_vocab_size(shape.vocab_size, 4, layout.tensor)
    found = arguments.read(written(shape, layout, padded), "args", vocab_size=shape.vocab_size)
    assert found == arguments.Arguments(shape, layout, padded)


def test_a_model_as_upstream_saves_it():
    """Flags that were not given."""
    args = written(group_query_attention=False, num_query_groups=1, moe_ffn_hidden_size=None, window_size=None)
    args.expert_tensor_parallel_size = args.virtual_pipeline_model_parallel_size = None
    del args.layernorm_epsilon, args.moe_layer_freq
    args.norm_epsilon = 0.5
    found = arguments.read(args, "args")
    assert (found.shape.num_query_groups, found.shape.ffn_hidden_size) == (6, 40)
    assert (found.shape.sliding_window, found.shape.norm_epsilon, found.shape.vocab_size) == (None, 0.5, 40)
    assert found.layout == Layout()


@pytest.mark.parametrize(
    ("layers", "embedding", "loss", "stages"),
    [(5, True, False, (1, 2, 2)), (5, False, True, (2, 2, 1)), (4, 1, 1, (1, 2, 1))],
)
def test_embedding_and_loss_count_as_layers(layers, embedding, loss, stages):
    args = written(SHAPE, Layout(1, 2), num_layers=layers, pipeline_model_parallel_size=3)
    args.account_for_embedding_in_pipeline_split, args.account_for_loss_in_pipeline_split = embedding, loss
    assert arguments.read(args, "args").layout.stages == stages


@pytest.mark.parametrize("text", ["E|t*3|tL", "Et,|(tt)*1|,tL", "E(t|)*4|L", "Et|t|t|tL||", "E(tt|)*2|||L"])
def test_text_of_a_layout_means_what_it_means_to_upstream(text):
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    theirs = PipelineParallelLayerLayout.parse_str_to_list(text)
    args = written(SHAPE, Layout(1, 2), pipeline_model_parallel_size=3, pipeline_model_parallel_layout=text)
    assert arguments.read(args, "args").layout.stages == tuple(stage.count(LayerType.decoder) for stage in theirs)


def test_other_layers_in_a_layout():
    args = written(SHAPE, Layout(1, 2), pipeline_model_parallel_layout="Ett|ttmL")
    with pytest.raises(CheckpointError, match="layout 'Ett|ttmL' has m; only E, t and L"):
        arguments.read(args, "args")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": "LayerNorm"}, "normalization = 'LayerNorm'; .* have 'RMSNorm'"),
        ({"swiglu": False}, "swiglu = False; .* have True"),
        ({"add_bias_linear": True}, "add_bias_linear = True; .* have None"),
        ({"rotary_percent": 0.5}, "rotary_percent = 0.5; .* have 1.0"),
        ({"moe_shared_expert_intermediate_size": 8}, "moe_shared_expert_intermediate_size = 8"),
        ({"moe_router_pre_softmax": True}, "moe_router_pre_softmax = True"),
        ({"moe_layer_freq": [0, 1, 1, 1]}, r"moe_layer_freq is \[0, 1, 1, 1\], but every layer"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ({"expert_model_parallel_size": 3}, "args of x: --target-expert-parallel-size 3: must divide the 4 experts"),
    ],
)
def test_models_that_are_no_mixtral_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        arguments.read(written(**changes), "args of x")


@pytest.mark.parametrize(
    ("vocab", "divisible", "tensor", "rows"), [(32000, 128, 1, 32000), (251, 128, 2, 256), (7, 1, 2, 8)]
)
def test_padded_vocabulary(vocab, divisible, tensor, rows):
    assert arguments.padded_vocab_size(vocab, divisible, tensor) == rows

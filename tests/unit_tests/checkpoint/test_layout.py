"""The layers of stages, and the parts that ranks hold, are upstream's; what cannot be is refused by its flag."""

from types import SimpleNamespace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.layout import Layout, virtual_stages
from ascend_patch.checkpoint.shape import ModelShape
from tests.unit_tests.checkpoint.models import laid_out

SHAPE = ModelShape(8, 64, 96, 8, 4, 8, 100, num_experts=8, topk=2)


def upstream_layers(layout: Layout, num_layers: int, rank: int, chunk: int) -> range:
    """What upstream's own functions say."""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    config = SimpleNamespace(
        num_layers=num_layers,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
        num_layers_in_first_pipeline_stage=layout.first_layers,
        num_layers_in_last_pipeline_stage=layout.last_layers,
        account_for_embedding_in_pipeline_split=False,
        account_for_loss_in_pipeline_split=False,
        pipeline_model_parallel_layout=None,
    )
    stage = chunk if layout.virtual > 1 else None
    start = get_transformer_layer_offset(config, stage, rank)
    return range(start, start + get_num_layers_to_build(config, stage, rank))


@settings(deadline=None)  # the first example imports Megatron-LM
@given(laid_out())
def test_layers_of_a_chunk_are_upstreams(case):
    shape, layout = case
    assume(layout.stages is None)
    for rank in range(layout.pipeline):
        for chunk in range(layout.virtual):
            layers = layout.layers(shape.num_layers, rank, chunk)
            assert layers == upstream_layers(layout, shape.num_layers, rank, chunk)


@settings(deadline=None)
@given(laid_out())
def test_the_stages_are_all_layers_in_order(case):
    shape, layout = case
    stages = layout.stage_layers(shape.num_layers)
    assert len(stages) == layout.pipeline * layout.virtual
    assert [layer for stage in stages for layer in stage] == list(range(shape.num_layers))
    if layout.stages is not None:
        assert tuple(map(len, stages)) == layout.stages


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_parts_are_those_of_upstreams_ranks(tensor, expert_tensor, expert, pipeline, data):
    from megatron.core.parallel_state import RankGenerator

    assume(tensor % expert_tensor == 0)
    layout = Layout(tensor, pipeline, expert, expert_tensor)
    world = tensor * expert_tensor * expert * pipeline * data  # both grids fit
    order = "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=tensor, ep=1, dp=world // tensor // pipeline, pp=pipeline, cp=1, order=order)
    expert_data = world // expert_tensor // expert // pipeline
    experts = RankGenerator(tp=expert_tensor, ep=expert, dp=expert_data, pp=pipeline, cp=1, order=order)

    def numbers(generator: RankGenerator, token: str) -> dict[int, int]:
        return {rank: number for group in generator.get_ranks(token) for number, rank in enumerate(group)}

    places = [numbers(dense, "tp"), numbers(dense, "pp"), numbers(experts, "ep"), numbers(experts, "tp")]
    wanted = {tuple(place[rank] for place in places) for rank in range(world)}
    assert {(one.tensor, one.pipeline, one.expert, one.expert_tensor) for one in layout.ranks()} == wanted
    names = [layout.folder(rank) for rank in layout.ranks()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (Layout(), ["mp_rank_00"]),
        (Layout(2), ["mp_rank_00", "mp_rank_01"]),
        (Layout(1, 2), ["mp_rank_00_000", "mp_rank_00_001"]),
        (Layout(2, expert=2), ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]),
        (Layout(2, expert=2, expert_tensor=1), ["mp_rank_00_000", "mp_rank_01_001"]),
        (Layout(1, 2, 2), ["mp_rank_00_000_000", "mp_rank_00_000_001", "mp_rank_00_001_000", "mp_rank_00_001_001"]),
    ],
)
def test_names_of_parts_as_upstream_wrote_them(layout, names):
    assert sorted(layout.folder(rank) for rank in layout.ranks()) == names


DENSE = ModelShape(8, 64, 96, 8, 4, 8, 100)


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        (SHAPE, Layout(3), "--target-tensor-parallel-size 3: must divide the 4 key and value heads or be a multiple"),
        (SHAPE, Layout(16), "--target-tensor-parallel-size 16: must divide the 8 attention heads"),
        (
            ModelShape(1, 8, 8, 6, 1, 1, 9),
            Layout(3),
            "-tensor-parallel-size 3: must divide the 8 rows of queries, keys",
        ),
        (ModelShape(1, 8, 9, 4, 2, 4, 9), Layout(2), "-tensor-parallel-size 2: must divide the 9 rows of the MLP"),
        (SHAPE, Layout(expert=3), "--target-expert-parallel-size 3: must divide the 8 experts"),
        (DENSE, Layout(expert=2), "--target-expert-parallel-size 2: must be 1: the model has no experts"),
        (
            SHAPE,
            Layout(expert_tensor=5),
            "--target-expert-tensor-parallel-size 5: must divide the 96 rows of an expert",
        ),
        (SHAPE, Layout(1, 3), "--target-pipeline-parallel-size 3: 3 ranks cannot share 8 layers evenly"),
        (SHAPE, Layout(1, 4, first_layers=3), "-pipeline-parallel-size 4: the other 3 ranks cannot share 5 layers"),
        (SHAPE, Layout(1, 2, first_layers=3, last_layers=4), "the other 0 ranks cannot share 1 layers"),
        (SHAPE, Layout(1, 2, first_layers=8), "--target-decoder-first-pipeline-num-layers 8: must be between 1 and 7"),
        (SHAPE, Layout(last_layers=2), "--target-decoder-last-pipeline-num-layers 2: .* a pipeline of at least 2"),
        (
            SHAPE,
            Layout(1, 2, virtual=2, first_layers=4, last_layers=4),
            "last-pipeline-num-layers 4: .* name only the first",
        ),
        (SHAPE, Layout(1, 2, virtual=3), "the 3 model chunks of a rank cannot share its 4 layers"),
        (SHAPE, Layout(1, 2, stages=(5, 4)), "with 8 layers in all; found stages of 5, 4 layers"),
        (SHAPE, Layout(1, 2, stages=(5, 2, 1)), "needs as many stages"),
    ],
)
def test_what_does_not_suit_the_model_is_refused(shape, layout, message):
    with pytest.raises(CheckpointError, match=message):
        layout.check(shape)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 0}, "--target-tensor-parallel-size is 0, but must be at least 1"),
        ({"expert_tensor": -1}, "--target-expert-tensor-parallel-size is -1"),
        ({"virtual": 2}, "2 model chunks need a pipeline of 2 ranks"),
    ],
)
def test_sizes_that_no_model_has(sizes, message):
    with pytest.raises(CheckpointError, match=message):
        Layout(**sizes)


def test_parts_that_names_do_not_tell_apart():
    with pytest.raises(CheckpointError, match=r"must divide the tensor parallel size, 1, .*--ckpt-format torch_dist"):
        list(Layout(expert_tensor=2).ranks())


def test_layers_of_a_virtual_stage():
    assert virtual_stages(8, 2, None) == 1
    assert virtual_stages(8, 2, 2) == 2
    for wrong in (3, 0, 8):
        with pytest.raises(CheckpointError, match=f"-virtual-pipeline-stage {wrong}: must divide the 4 layers"):
            virtual_stages(8, 2, wrong)
    with pytest.raises(CheckpointError, match="--target-pipeline-parallel-size 3"):
        virtual_stages(8, 3, 1)

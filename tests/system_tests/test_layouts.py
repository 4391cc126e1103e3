"""One converted checkpoint, trained on real text in each layout: the losses agree.

In float32. Sums are taken in another order, so the last digits of the first loss differ; from then on the difference
grows, because Adam's first steps have the size of the learning rate however small a gradient is.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.run import BUNDLED
from tests.system_tests import bits, hugging_face, parity, real_instructions, real_text
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import CAPACITY, CP2, EP2, ONE, PP2, TP2_SP, tiny, title
from tests.system_tests.report import Compared
from tools.preprocess_data import main as preprocess

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("logits")]  # that of the server

ITERATIONS = 20
FIRST, ALL = 1e-5, 1e-3
"""Relative differences of the loss that are allowed in the first iteration, and in any."""
SHAPE = hugging_face.MIXTRAL | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_local_experts": 4,
    "vocab_size": real_text.VOCABULARY,
}
LAYOUTS = parity.LAYOUTS | {
    "cp2_a2a": (2, CP2 | {"cp_comm_type": "a2a"}),
    "cp2_allgather": (2, CP2 | {"cp_comm_type": "allgather"}),
    "cp4_each_layer": (
        4,
        {
            "context_parallel_size": 4,
            "cp_comm_type": ("p2p", "a2a", "allgather", "a2a+p2p"),
            "hierarchical_context_parallel_sizes": (2, 2),
        },
    ),
}
MODES = {
    "allgather": {"moe_token_dispatcher_type": "allgather"},
    "drop": CAPACITY,
    "drop_by_position": CAPACITY | {"moe_token_drop_policy": "position"},
    "pad": CAPACITY | {"moe_pad_expert_input_to_capacity": True},
}
"""How tokens reach experts, where it is not alltoall without a capacity."""
LAYOUTS |= {
    f"{layout}_{mode}": (processes, flags | MODES[mode])
    for mode in MODES
    for layout, (processes, flags) in parity.LAYOUTS.items()
    if layout in ("one", "ep2", "etp2", "tp2_ep2_etp1")
}
DISPATCHED = [f"{layout}_{mode}" for mode in MODES for layout in ("ep2", "etp2")]
DISPATCHED += ["tp2_ep2_etp1", "tp2_ep2_etp1_allgather"]  # with a capacity each tensor parallel rank has one of its own
LAYOUTS |= {
    "tp2_ep4": (8, TP2_SP | {"expert_model_parallel_size": 4}),
    "tp2_ep4_etp1_allgather": (
        4,
        TP2_SP | {"expert_model_parallel_size": 4, "expert_tensor_parallel_size": 1} | MODES["allgather"],
    ),
}
BF16 = EP2 | {"bf16": True}
NO_OVERLAP = {"overlap_grad_reduce": False, "overlap_param_gather": False}
LAYOUTS |= {
    "ep2_no_overlap": (2, EP2 | NO_OVERLAP),
    "ep2_bf16": (2, BF16),
    "ep2_bf16_overlap": (2, BF16 | {"overlap_moe_expert_parallel_comm": True}),
    "vpp2_ep2_bf16": (4, PP2 | BF16 | {"num_layers_per_virtual_pipeline_stage": 1}),
    "vpp2_ep2_bf16_overlap": (
        4,
        PP2 | BF16 | {"num_layers_per_virtual_pipeline_stage": 1, "overlap_moe_expert_parallel_comm": True},
    ),
}
LAYOUTS |= {
    "cp2_tp2": (4, CP2 | TP2_SP | {"cp_comm_type": "a2a"}),
    "cp4_packed": (4, {"context_parallel_size": 4, "cp_comm_type": ("a2a", "allgather", "allgather", "a2a")}),
}
CONTEXT = ("cp2", "cp2_a2a", "cp2_allgather", "cp4_each_layer", "cp2_tp2_ep2")
COMPARED = ("tp2_sp", "ep2", "pp2", "tp2_pp2_ep2", *CONTEXT, "etp2", *DISPATCHED, "tp2_ep4", "tp2_ep4_etp1_allgather")
FAST = ("ep2", "cp2", "ep2_allgather", "etp2")

Losses = dict[int, float]


def flags(layout: dict, folder: Path, weights: Path) -> list[str]:
    """The arguments of a training from ``weights`` that leaves its events in ``folder``."""
    start = {"load": weights, "finetune": True, "ckpt_format": "torch_dist", "train_iters": ITERATIONS}
    events = {"tensorboard_dir": folder / "events", "tensorboard_log_interval": 1, "data_cache_path": folder / "cache"}
    return tiny(**hugging_face.megatron_arguments(SHAPE) | real_text.flags() | start | events | layout)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted checkpoint of a model of transformers, initialised by it."""
    folder = tmp_path_factory.mktemp("weights")
    hugging_face.untrained_model(**SHAPE).save_pretrained(folder / "hf")
    convert(Options(folder / "hf", folder / "megatron", ckpt_format="torch_dist", make_vocab_size_divisible_by=1))
    return folder / "megatron"


@pytest.fixture(scope="module")
def losses(server: Server, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Losses]:
    """losses(layout): iteration -> loss; the same training each time."""

    @cache
    def losses(name: str) -> Losses:
        folder = tmp_path_factory.mktemp(name)
        processes, layout = LAYOUTS[name]
        server.run(BUNDLED, flags(layout, folder, weights), processes).succeeded()
        return bits.numbers(folder / "events", "lm loss")

    return losses


@pytest.mark.parametrize(
    "layout", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in COMPARED if name not in FAST)]
)
def test_layouts_agree(losses: Callable[[str], Losses], compared: Compared, layout: str) -> None:
    mode = next((name for name in MODES if layout.endswith(f"_{name}") and name != "allgather"), None)
    alone, together = losses(f"one_{mode}" if mode else "one"), losses(layout)
    assert sorted(alone) == sorted(together) == list(range(1, ITERATIONS + 1))
    assert alone[ITERATIONS] < alone[1] - 0.5  # it learns
    name = title(LAYOUTS[layout][1])
    compared.losses(
        f"{name} and one process, fp32, {ITERATIONS} iterations",
        (name, list(together.values())),
        ("one process", list(alone.values())),
        FIRST,
        ALL,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["drop", "drop_by_position"])
def test_tokens_are_dropped(losses: Callable[[str], Losses], mode: str) -> None:
    """The comparisons of these modes are of something: the capacity is too small for some expert."""
    assert losses(f"one_{mode}") != losses("one")
    assert losses("one_drop") != losses("one_drop_by_position")
    assert losses("one_pad")[1] == pytest.approx(losses("one_drop")[1], rel=FIRST)


@pytest.mark.parametrize(
    ("overlapped", "plain"),
    [
        pytest.param("ep2", "ep2_no_overlap", marks=pytest.mark.slow),
        ("ep2_bf16_overlap", "ep2_bf16"),
        pytest.param("vpp2_ep2_bf16_overlap", "vpp2_ep2_bf16", marks=pytest.mark.slow),
    ],
)
def test_overlap_changes_no_bit(losses: Callable[[str], Losses], overlapped: str, plain: str) -> None:
    """Gradients and parameters, and tokens of one micro batch beside the computation of another."""
    assert losses(overlapped) == losses(plain)


PACKED = {
    "sft": True,
    "seq_length": 256,
    "max_position_embeddings": 256,
    "split": "1,0,0",
    "calculate_per_token_loss": True,
    # It counts padding too, of which context parallelism has some more.
    "moe_router_load_balancing_type": "none",
    "moe_aux_loss_coeff": 0,
}
PADDED_TO = 8
"""Twice the most context parallel ranks of the comparisons."""


@pytest.fixture(scope="module")
def packed_losses(
    server: Server, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Losses, Losses]]:
    """packed_losses(layout, **changes): losses and norms of gradients, tuned on real instructions, several a sample.

    One process does not pad its conversations. They are in the same samples as those of the others, which leave room
    for that, and each learned token of an iteration counts alike: padding alone is between the layouts.
    """
    folder = tmp_path_factory.mktemp("instructions")
    records = real_instructions.write(folder / "alpaca.json", real_instructions.short(200))
    command = ["--input", str(records), "--tokenizer-name-or-path", str(real_instructions.tokenizer())]
    command += ["--handler-name", "GeneralInstructionHandler", "--output-prefix", str(folder / "packed")]
    command += ["--pack", "--seq-length", str(PACKED["seq_length"]), "--pad-to-multiple-of", str(PADDED_TO)]
    assert preprocess(command) == 0

    @cache
    def packed_losses(name: str, **changes: object) -> tuple[Losses, Losses]:
        events = tmp_path_factory.mktemp(name)
        processes, layout = LAYOUTS[name]
        options = layout | PACKED | {"data_path": folder / "packed", "train_iters": 3, **changes}
        line = flags(options, events, weights)
        server.run(BUNDLED, line, processes).succeeded()
        return bits.numbers(events / "events", "lm loss"), bits.numbers(events / "events", "grad-norm")

    return packed_losses


@pytest.mark.parametrize(
    ("layout", "reference"),
    [
        ("cp2_a2a", "one"),
        pytest.param("cp2_allgather", "one", marks=pytest.mark.slow),
        pytest.param("cp2_tp2", "tp2_sp", marks=pytest.mark.slow),
        pytest.param("cp4_packed", "one", marks=pytest.mark.slow),
    ],
)
def test_packed_samples_are_shared(
    packed_losses: Callable[..., tuple[Losses, Losses]], compared: Compared, layout: str, reference: str
) -> None:
    (alone, norm), (together, norm_together) = packed_losses(reference), packed_losses(layout)
    print(f"norms {norm_together} and {norm}")
    assert sorted(alone) == sorted(together) == [1, 2, 3]
    name, other = (title(LAYOUTS[one][1]) for one in (layout, reference))
    compared.losses(
        f"{name} and {other}, packed instructions, fp32",
        (name, list(together.values())),
        (other, list(alone.values())),
        FIRST,
        ALL,
    )
    assert norm_together[1] == pytest.approx(norm[1], rel=FIRST)


@pytest.mark.slow
def test_packed_samples_where_ranks_count_alike(packed_losses: Callable[..., tuple[Losses, Losses]]) -> None:
    """Upstream's choice without --calculate-per-token-loss: other gradients, the loss of the same tokens."""
    (alone, norm), (together, other) = packed_losses("one"), packed_losses("cp2_a2a", calculate_per_token_loss=False)
    assert together[1] == pytest.approx(alone[1], rel=FIRST)
    assert abs(other[1] / norm[1] - 1) > 10 * FIRST


def test_another_initialisation_does_not_agree(losses: Callable[[str], Losses], server: Server, tmp_path: Path) -> None:
    """The comparison can fail: without the checkpoint the weights are others."""
    server.run(BUNDLED, flags(ONE, tmp_path, tmp_path / "none")).succeeded()
    found = bits.numbers(tmp_path / "events", "lm loss")
    assert max(abs(found[i] / loss - 1) for i, loss in losses("one").items()) > ALL


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq_length": 30}, "--seq-length 30 with --context-parallel-size 2"),
        pytest.param({"sft": True}, "--cp-comm-type p2p takes no packed sequences", marks=pytest.mark.slow),
    ],
    ids=["odd", "packed"],
)
def test_what_cannot_be_split_is_refused(
    server: Server, weights: Path, tmp_path: Path, changes: dict, words: str
) -> None:
    """Every rank fails alike, before it builds the model; one says why."""
    ended = server.run(BUNDLED, flags(CP2 | changes, tmp_path, weights), processes=2).failed()
    (paragraph,) = ended.paragraphs
    assert words in paragraph


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"moe_token_dispatcher_type": "flex"},
            ("--moe-token-dispatcher-type flex", "deep_ep is not installed", "alltoall or allgather"),
        ),
        (
            {"overlap_moe_expert_parallel_comm": True, "delay_wgrad_compute": True},
            ("--delay-wgrad-compute", "TransformerEngine", "--overlap-moe-expert-parallel-comm works without"),
        ),
    ],
    ids=["flex", "delay_wgrad"],
)
def test_what_needs_libraries_for_gpus_is_refused(server: Server, flags: dict, words: tuple[str, ...]) -> None:
    (paragraph,) = server.run(BUNDLED, tiny(**flags)).failed().paragraphs
    for expected in words:
        assert expected in paragraph

"""What a conversion means: stock upstream, loading with --load, computes the logits of transformers, and vice versa."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.keys import Build
from ascend_patch.run import BUNDLED
from tests.system_tests import hugging_face, releases
from tests.system_tests.logits import compute
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_PP2_EP2, TP2_SP, tiny

pytestmark = pytest.mark.xdist_group("logits")

ATOL = 1e-4


class Model:
    """A model of transformers, some tokens, and their logits."""

    def __init__(self, shape: dict, folder: Path) -> None:
        self.shape = shape
        self.folder = hugging_face.save(hugging_face.random_model(**shape), folder)
        self.tokens = hugging_face.random_tokens(shape["vocab_size"])
        self.logits = hugging_face.logits(folder, self.tokens)
        self.flags = hugging_face.megatron_arguments(shape)

    def check(self, logits: torch.Tensor) -> None:
        """``logits``, with those of padding, are this model's."""
        torch.testing.assert_close(logits[..., : self.shape["vocab_size"]], self.logits, rtol=0, atol=ATOL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """model(name) of a shape in :mod:`hugging_face`; the same one each time."""
    return cache(lambda name: Model(getattr(hugging_face, name), tmp_path_factory.mktemp(name)))


EIGHT = {"tensor": 2, "pipeline": 2, "expert": 2}
DENSE_EIGHT = {"tensor": 2, "pipeline": 2}
TP2_PP2 = TP2_SP | PP2
TP4_SP = TP2_SP | {"tensor_model_parallel_size": 4}  # more ranks than v0.3 here has groups


@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
@pytest.mark.parametrize(
    ("shape", "layout", "processes", "flags"),
    [
        ("MIXTRAL", {}, 1, ONE),
        ("MIXTRAL", EIGHT, 8, TP2_PP2_EP2),
        (
            "MIXTRAL_8X22B",
            {"tensor": 2, "expert": 2, "expert_tensor": 1},
            2,
            TP2_SP | EP2 | {"expert_tensor_parallel_size": 1},
        ),
        ("MISTRAL_V01", {}, 1, ONE),
        ("MISTRAL_V01", DENSE_EIGHT, 4, TP2_PP2),
        ("MISTRAL_V03", {"tensor": 2}, 2, TP2_SP),
        ("MISTRAL_V03", {"tensor": 4}, 4, TP4_SP),
    ],
    ids=[
        "mixtral-one",
        "mixtral-tp2-pp2-ep2",
        "8x22b-tp2-ep2-etp1",
        "mistral-one",
        "mistral-tp2-pp2",
        "v0.3-tp2",
        "v0.3-tp4",
    ],
)
def test_upstream_computes_what_transformers_does(
    model: Callable[[str], Model],
    server: Server,
    tmp_path: Path,
    shape: str,
    layout: dict,
    processes: int,
    flags: dict,
    ckpt_format: str,
) -> None:
    given = model(shape)
    convert(
        Options(
            given.folder, tmp_path / "megatron", ckpt_format=ckpt_format, make_vocab_size_divisible_by=128, **layout
        )
    )
    load = {"load": tmp_path / "megatron", "ckpt_format": ckpt_format}
    given.check(compute(server, given.tokens, given.flags | flags | load, processes))


@pytest.mark.parametrize(
    ("layout", "flags"),
    [
        ({"layers_per_virtual_stage": 1}, {"num_layers_per_virtual_pipeline_stage": 1}),
        ({"first_layers": 1}, {"decoder_first_pipeline_num_layers": 1}),
        ({"last_layers": 1}, {"decoder_last_pipeline_num_layers": 1}),
    ],
    ids=["virtual", "first", "last"],
)
def test_stages(model: Callable[[str], Model], server: Server, tmp_path: Path, layout: dict, flags: dict) -> None:
    """In format torch, whose files hold what a rank holds: virtual and uneven pipeline stages."""
    given = model("MIXTRAL")
    convert(Options(given.folder, tmp_path / "megatron", ckpt_format="torch", pipeline=2, **layout))
    load = {"load": tmp_path / "megatron", "ckpt_format": "torch", "make_vocab_size_divisible_by": 1}
    given.check(compute(server, given.tokens, given.flags | PP2 | flags | load, 2))


@pytest.mark.parametrize(
    ("impl", "grouped"),
    [("local", True), ("local", False), ("transformer_engine", False)],
    ids=["local", "local-sequential", "sequential"],
)
@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
def test_builds(
    model: Callable[[str], Model], server: Server, tmp_path: Path, impl: str, grouped: bool, ckpt_format: str
) -> None:
    """The names that a model has in upstream's other builds."""
    given = model("MIXTRAL")
    convert(Options(given.folder, tmp_path / "megatron", ckpt_format=ckpt_format, expert=2, build=Build(impl, grouped)))
    flags = {"transformer_impl": impl, "moe_grouped_gemm": grouped}
    load = {"load": tmp_path / "megatron", "ckpt_format": ckpt_format, "make_vocab_size_divisible_by": 1}
    given.check(compute(server, given.tokens, given.flags | EP2 | flags | load, 2))


def test_torch_dist_loads_in_another_layout(model: Callable[[str], Model], server: Server, tmp_path: Path) -> None:
    given = model("MIXTRAL")
    convert(
        Options(given.folder, tmp_path / "megatron", tensor=4, pipeline=4, expert=8, make_vocab_size_divisible_by=32)
    )
    load = {"load": tmp_path / "megatron", "ckpt_format": "torch_dist", "make_vocab_size_divisible_by": 128}
    given.check(compute(server, given.tokens, given.flags | load))


def test_arguments_of_the_checkpoint_are_enough(model: Callable[[str], Model], server: Server, tmp_path: Path) -> None:
    """With --use-checkpoint-args the model need not be described again."""
    given = model("MISTRAL_V01")
    convert(Options(given.folder, tmp_path / "megatron", ckpt_format="torch"))
    described = set(given.flags) - {"seq_length", "bf16", "vocab_size", "window_size", "norm_epsilon"}
    flags = given.flags | dict.fromkeys(described, False) | {"no_gradient_accumulation_fusion": True}
    flags |= {"load": tmp_path / "megatron", "ckpt_format": "torch", "use_checkpoint_args": True}
    given.check(compute(server, given.tokens, flags | {"make_vocab_size_divisible_by": 1}))


def test_training_goes_on(model: Callable[[str], Model], server: Server, tmp_path: Path) -> None:
    """A job with nothing but --load starts from the converted weights, in bfloat16 and with an optimizer."""
    given = model("MIXTRAL")
    convert(Options(given.folder, tmp_path / "megatron", expert=2, dtype=torch.bfloat16))
    load = {"load": tmp_path / "megatron", "ckpt_format": "torch_dist", "bf16": True}
    run = server.run(BUNDLED, tiny(**given.flags | EP2 | load | {"make_vocab_size_divisible_by": 1}), 2).succeeded()
    assert sorted(run.iterations) == [1, 2, 3], run.tail()
    assert "successfully loaded checkpoint" in run.output
    assert "load_return" not in run.output, run.tail()


def test_a_swapped_matrix_shows(model: Callable[[str], Model], server: Server, tmp_path: Path) -> None:
    """The tolerance is far below what a wrong conversion would cost: here one expert's gate and up are exchanged."""
    given = model("MIXTRAL")
    wrong = hugging_face.load(given.folder)
    with torch.no_grad():
        fused = wrong.model.layers[1].mlp.experts.gate_up_proj  # [experts, gate then up, hidden]
        fused[3] = fused[3].roll(fused.shape[1] // 2, 0)
    hugging_face.save(wrong, tmp_path / "wrong")
    convert(Options(tmp_path / "wrong", tmp_path / "megatron", ckpt_format="torch"))
    load = {"load": tmp_path / "megatron", "ckpt_format": "torch", "make_vocab_size_divisible_by": 1}
    logits = compute(server, given.tokens, given.flags | load)
    assert (logits[..., : hugging_face.VOCABULARY] - given.logits).abs().max() > 100 * ATOL


def check_trained(server: Server, folder: Path, flags: dict, processes: int, ckpt_format: str) -> None:
    """Train, convert to Hugging Face: transformers has the same logits, and generates what the trained model would."""
    saved = folder / "trained"
    save = {"save": saved, "save_interval": 3, "ckpt_format": ckpt_format, "lr": 3e-3}
    flags = hugging_face.megatron_arguments(hugging_face.MIXTRAL) | flags
    server.run(BUNDLED, tiny(**flags | save), processes).succeeded()
    back = Options(saved, folder / "hf", loads="megatron", saves="huggingface", true_vocab_size=hugging_face.VOCABULARY)
    convert(back)
    model = hugging_face.load(folder / "hf")
    prompts = hugging_face.random_tokens(hugging_face.VOCABULARY, length=12)
    tokens = model.generate(prompts, max_length=32, min_length=32, do_sample=False, eos_token_id=None)
    assert tokens.shape == (4, 32)
    load = {"load": saved, "finetune": True, "ckpt_format": ckpt_format, "bf16": False}
    logits = compute(server, tokens, flags | load, processes)[..., : hugging_face.VOCABULARY]
    with torch.no_grad():
        torch.testing.assert_close(logits, model(tokens).logits, rtol=0, atol=ATOL)
    # Given what was generated so far, the trained model's next token is the generated one: it would generate the same.
    # (Or one of two that are equally good in float32, which happens in one of some hundred runs.)
    chosen = logits[:, 11:-1].gather(-1, tokens[:, 12:].unsqueeze(-1)).squeeze(-1)
    assert (logits[:, 11:-1].amax(-1) - chosen).max() < ATOL / 10
    assert tokens[:, 12:].unique().numel() > 10, "a model that repeats itself proves little"


@pytest.mark.parametrize(
    ("flags", "processes", "ckpt_format"),
    [
        pytest.param(TP2_PP2_EP2, 8, "torch_dist", marks=pytest.mark.slow),
        (EP2, 2, "torch_dist"),
        (EP2 | {"bf16": True}, 2, "torch"),
        (TP2_SP | {"transformer_impl": "local"}, 2, "torch"),
        (PP2 | {"transformer_impl": "local", "moe_grouped_gemm": False, "bf16": True}, 2, "torch_dist"),
    ],
    ids=["te-eight-torch_dist", "te-torch_dist", "te-torch", "local-torch", "local-torch_dist"],
)
def test_trained_by_upstream(server: Server, tmp_path: Path, flags: dict, processes: int, ckpt_format: str) -> None:
    check_trained(server, tmp_path, flags, processes, ckpt_format)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
@pytest.mark.parametrize("release", [r for r in releases.TRAINABLE if r != releases.INSTALLED])
def test_older_releases(model: Callable[[str], Model], tmp_path: Path, release: str, ckpt_format: str) -> None:
    """They load what the conversion writes, and what they trained is converted."""
    given = model("MIXTRAL")
    convert(
        Options(given.folder, tmp_path / "megatron", ckpt_format=ckpt_format, make_vocab_size_divisible_by=128, **EIGHT)
    )
    (tmp_path / "server").mkdir()
    with Server(tmp_path / "server", releases.folder(release)) as server:
        load = {"load": tmp_path / "megatron", "ckpt_format": ckpt_format}
        given.check(compute(server, given.tokens, given.flags | TP2_PP2_EP2 | load, 8))
        for impl in ("transformer_engine", "local"):
            (tmp_path / impl).mkdir()
            check_trained(server, tmp_path / impl, EP2 | {"transformer_impl": impl}, 2, ckpt_format)

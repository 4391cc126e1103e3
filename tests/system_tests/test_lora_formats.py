"""What a conversion of adapters means: PEFT and Megatron-LM compute the same logits with them, merged or not."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.run import BUNDLED
from tests.system_tests import hugging_face
from tests.system_tests.logits import compute
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import tiny
from tools.checkpoint.adapter import main

pytestmark = pytest.mark.xdist_group("logits")

ATOL = 1e-4
TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


class Trained:
    """A model, its base in Megatron-LM's format, adapters after a few large steps, and the logits of both together."""

    def __init__(self, server: Server, name: str, folder: Path) -> None:
        self.shape = getattr(hugging_face, name)
        self.model = hugging_face.save(hugging_face.random_model(**self.shape), folder / "model")
        self.base = folder / "base"
        convert(Options(self.model, self.base, make_vocab_size_divisible_by=128))
        self.tokens = hugging_face.random_tokens(self.shape["vocab_size"])
        self.flags = hugging_face.megatron_arguments(self.shape)
        targets = (*TARGETS, "router") if "num_local_experts" in self.shape else TARGETS
        self.lora = {"lora_target_modules": targets, "lora_r": 4, "lora_alpha": 8, "pretrained_checkpoint": self.base}
        self.adapters = folder / "adapters"
        training = {"train_iters": 3, "save": self.adapters, "save_interval": 3, "lr": 1e-2}
        server.run(BUNDLED, tiny(**self.flags | self.lora | training)).succeeded()
        self.logits = compute(server, self.tokens, self.flags | self.lora | {"lora_load": self.adapters})
        self.logits = self.logits[..., : self.shape["vocab_size"]]

    def check(self, logits: torch.Tensor) -> None:
        torch.testing.assert_close(logits[..., : self.shape["vocab_size"]], self.logits, rtol=0, atol=ATOL)


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """trained(name of a shape in :mod:`hugging_face`); the same one each time."""
    return cache(lambda name: Trained(server, name, tmp_path_factory.mktemp(name)))


def run(*words: object) -> None:
    assert main(list(map(str, words))) == 0


def peft_logits(model: Path, adapters: Path, tokens: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel

    with torch.no_grad():
        return PeftModel.from_pretrained(hugging_face.load(model), str(adapters)).eval()(tokens).logits


SHAPES = ("MIXTRAL", "MISTRAL_V01")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "MIXTRAL")) for name in SHAPES]
)
def test_peft_computes_what_was_trained(trained: Callable, tmp_path: Path, name: str) -> None:
    given = trained(name)
    run("export", "--load-dir", given.adapters, "--save-dir", tmp_path / "peft")
    given.check(peft_logits(given.model, tmp_path / "peft", given.tokens))
    assert (hugging_face.logits(given.model, given.tokens) - given.logits).abs().max() > 100 * ATOL


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "MIXTRAL")) for name in SHAPES]
)
def test_import_undoes_export(trained: Callable, server: Server, tmp_path: Path, name: str) -> None:
    given = trained(name)
    run("export", "--load-dir", given.adapters, "--save-dir", tmp_path / "peft")
    run("import", "--load-dir", tmp_path / "peft", "--model", given.model, "--save-dir", tmp_path / "back")
    given.check(compute(server, given.tokens, given.flags | given.lora | {"lora_load": tmp_path / "back"}))


@pytest.mark.parametrize("base", ["model", "base"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "MIXTRAL")) for name in SHAPES]
)
def test_merged(trained: Callable, server: Server, tmp_path: Path, name: str, base: str) -> None:
    given = trained(name)
    run("merge", "--load-dir", given.adapters, "--base", getattr(given, base), "--save-dir", tmp_path / "merged")
    if base == "model":
        given.check(hugging_face.logits(tmp_path / "merged", given.tokens))
    else:
        given.check(compute(server, given.tokens, given.flags | {"load": tmp_path / "merged"}))


def test_adapters_that_peft_made(trained: Callable, server: Server, tmp_path: Path) -> None:
    """Of single projections, each with an ``A`` of its own: three times the rank, and the same function."""
    from peft import LoraConfig, get_peft_model

    given = trained("MISTRAL_V01")
    modules = ["q_proj", "v_proj", "k_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    made = get_peft_model(hugging_face.load(given.model), config).eval()
    made.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        expected = made(given.tokens).logits
    run("import", "--load-dir", tmp_path / "peft", "--model", given.model, "--save-dir", tmp_path / "megatron")
    lora = {"lora_target_modules": ("linear_qkv", "linear_fc1", "linear_fc2"), "lora_r": 12, "lora_alpha": 18}
    flags = given.flags | lora | {"pretrained_checkpoint": given.base, "lora_load": tmp_path / "megatron"}
    logits = compute(server, given.tokens, flags)[..., : given.shape["vocab_size"]]
    torch.testing.assert_close(logits, expected, rtol=0, atol=ATOL)
    run("merge", "--load-dir", tmp_path / "peft", "--base", given.model, "--save-dir", tmp_path / "merged")
    merged = hugging_face.logits(tmp_path / "merged", given.tokens)
    torch.testing.assert_close(merged, expected, rtol=0, atol=ATOL)

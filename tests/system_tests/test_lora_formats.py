"""What a conversion of adapters means: PEFT and Megatron-LM compute the same logits with them, merged or not."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.run import BUNDLED
from tests.system_tests import evaluation, generation, hugging_face
from tests.system_tests.generation import check_same, generate, transformers_greedy
from tests.system_tests.launcher import ROOT
from tests.system_tests.logits import compute
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_SP, tiny
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


# ---- generating with adapters, without merging them

GREEDY = {"max_new_tokens": 16, "ignore_eos": True}


@pytest.mark.parametrize("base", ["pretrained_checkpoint", "load"])
@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        (ONE, 1),
        pytest.param(EP2, 2, marks=pytest.mark.slow),
        pytest.param(TP2_SP | PP2, 4, marks=pytest.mark.slow),
    ],
    ids=["one", "ep2", "tp2-pp2"],
)
def test_generated_tokens_are_those_of_merged_weights(
    trained: Callable, server: Server, tmp_path: Path, layout: dict, processes: int, base: str
) -> None:
    """With either flag for the base."""
    given = trained("MIXTRAL")
    run("merge", "--load-dir", given.adapters, "--base", given.model, "--save-dir", tmp_path / "merged")
    merged, plain = hugging_face.load(tmp_path / "merged"), hugging_face.load(given.model)
    prompts = [given.tokens[0, :length].tolist() for length in (1, 7, 20)]
    expected = [transformers_greedy(merged, prompt, GREEDY["max_new_tokens"]) for prompt in prompts]
    assert expected != [transformers_greedy(plain, prompt, GREEDY["max_new_tokens"]) for prompt in prompts]
    adapters = "load" if base == "pretrained_checkpoint" else "lora_load"
    way = {"pretrained_checkpoint": False, base: given.base, adapters: given.adapters}
    flags = generation.flags(given.shape, given.base, given.model, **given.lora | layout | way)
    (requests,) = generate(server, [{"prompts": prompts, "options": GREEDY}], flags, processes, max_sequence_length=48)
    for prompt, request, tokens in zip(prompts, requests, expected, strict=True):
        check_same(merged, prompt, request["tokens"], tokens)


@pytest.mark.slow
def test_the_scripts_take_adapters(trained: Callable, server: Server, tmp_path: Path) -> None:
    """generate.py over a base in Hugging Face's format, which is converted, says what it says of merged weights."""
    given = trained("MIXTRAL")
    run("merge", "--load-dir", given.adapters, "--base", given.base, "--save-dir", tmp_path / "merged")
    lora = given.lora | {"pretrained_checkpoint": False, "lora_load": given.adapters}
    said = []
    for number, (weights, more) in enumerate(((given.model, lora), (tmp_path / "merged", {}), (given.model, {}))):
        flags = generation.flags(given.shape, weights, given.model, **more) | {"seq_length": 48, "max_new_tokens": 16}
        flags |= {"prompt": "Once upon a time", "output": tmp_path / f"{number}.jsonl"}
        flags |= {"converted_dir": tmp_path / "converted"}
        server.run(ROOT / "tasks" / "inference" / "generate.py", tiny(**flags)).succeeded()
        said.append(json.loads((tmp_path / f"{number}.jsonl").read_text())["completion"])
    assert said[0] == said[1] != said[2]


@pytest.mark.slow
def test_evaluation_scores_as_with_merged_weights(trained: Callable, server: Server, tmp_path: Path) -> None:
    """Log-likelihoods; what was computed with adapters is not taken for what the base says."""
    given = trained("MIXTRAL")
    run("merge", "--load-dir", given.adapters, "--base", given.base, "--save-dir", tmp_path / "merged")
    ways = {
        "adapters": given.lora | {"load": given.adapters},
        "merged": {"load": tmp_path / "merged"},
        "base": {"load": given.base},
    }
    found = {}
    for name, way in ways.items():
        flags = generation.flags(given.shape, given.base, given.model, **way)
        evaluation.evaluate(server, tmp_path / name, flags, texts=["To be, or not to be", "three of us"]).succeeded()
        found[name] = json.loads((tmp_path / name / "texts.json").read_text())["texts"]
    assert found["adapters"] == pytest.approx(found["merged"], abs=1e-3)
    assert found["adapters"] != pytest.approx(found["base"], abs=1e-2)
    journal = (tmp_path / "adapters" / "texts.journal").read_text()
    (tmp_path / "base" / "texts.journal").write_text(journal)
    flags = generation.flags(given.shape, given.base, given.model, **ways["base"])
    assert "checkpoint" in evaluation.evaluate(server, tmp_path / "base", flags, texts=["To be"]).failed().output


@pytest.mark.slow
def test_generation_refuses_other_adapters(trained: Callable, server: Server, tmp_path: Path) -> None:
    """Each message names the adapters, and what they are to be added to."""
    given, other = trained("MIXTRAL"), trained("MISTRAL_V01")
    peft, imported = tmp_path / "peft", tmp_path / "imported"
    run("export", "--load-dir", other.adapters, "--save-dir", peft)
    run("import", "--load-dir", peft, "--model", other.model, "--save-dir", imported)

    def refused(**changes: object) -> str:
        flags = generation.flags(given.shape, given.adapters, given.model, **given.lora | changes)
        request = tmp_path / "request"
        request.write_text("{}")
        run = server.run(Path(generation.__file__), [request, tmp_path, *tiny(**flags)])
        (paragraph,) = set(run.failed().paragraphs)
        return paragraph

    for folder in (other.adapters, imported):
        message = refused(load=folder)
        assert (
            f"The adapters in {folder} were trained with --num-experts 0, and this run has --num-experts 8" in message
        )
        assert f"its base is {given.base}" in message
    assert "were trained with --lora-r 4, and this run has --lora-r 8" in refused(lora_r=8)
    targets = {"lora_target_modules": TARGETS[:2]}
    assert "and this run has --lora-target-modules linear_proj linear_qkv; its base" in refused(**targets)
    assert f"--load {peft} is no checkpoint of adapters" in refused(load=peft)
    assert "--lora-load names the adapters; it is missing" in refused(pretrained_checkpoint=False, load=given.base)
    assert f"--load {given.adapters} holds adapters" in refused(
        pretrained_checkpoint=False, lora_target_modules=False, lora_r=False, lora_alpha=False
    )

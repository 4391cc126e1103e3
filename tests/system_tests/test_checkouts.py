"""Unmodified checkouts: stock `pretrain_gpt.py`; generation. `make test-checkouts MEGATRON_PATHS="…"` runs these."""

import json
import sys
from pathlib import Path

import pytest

from ascend_patch.data.tokenize import HuggingFaceTokenizer
from ascend_patch.generation.base_engine import Request
from ascend_patch.generation.sampling import SamplingOptions
from tests.system_tests import generation, hugging_face
from tests.system_tests.launcher import ROOT, environment, run, single_process, train
from tests.system_tests.mixtral import tiny
from tests.system_tests.trainer import LAST, Trainer, check, check_resumed

pytestmark = pytest.mark.checkouts


@pytest.fixture(scope="module")
def trainer(checkout: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    if checkout is None or not (checkout / "pretrain_gpt.py").is_file():
        pytest.fail(f"{checkout} is no Megatron-LM checkout; name some with --megatron-path", pytrace=False)
    folder = tmp_path_factory.mktemp("checkout")
    return Trainer(folder, megatron=checkout, script=checkout / "pretrain_gpt.py")


@pytest.mark.parametrize("layout", ["one", "pp2", "tp2_pp2_ep2"])
def test_layouts(trainer: Trainer, layout: str) -> None:
    check(trainer.layout(layout))


@pytest.mark.parametrize("checkpoint_format", ["torch_dist", "torch"])
@pytest.mark.parametrize("layout", ["tp2_sp", "ep2"])
def test_layouts_and_resume(trainer: Trainer, layout: str, checkpoint_format: str) -> None:
    whole = trainer.layout(layout, checkpoint_format)
    check(whole, LAST)
    check_resumed(whole, trainer.resume(layout, checkpoint_format))


def test_explicit_door(trainer: Trainer, checkout: Path) -> None:
    """`python -m ascend_patch.run` prints what `ASCEND_PATCH=1` prints."""
    command = [sys.executable, "-m", "ascend_patch.run", str(checkout / "pretrain_gpt.py"), *tiny()]
    ended = run(command, environment(checkout, **single_process()), timeout=240).succeeded()
    assert ended.iterations == trainer.layout("one").iterations


def test_generation(checkout: Path, tmp_path: Path) -> None:
    """`generate.py`, on the engine that the release has, goes on with texts as transformers does."""
    folder = hugging_face.save(hugging_face.random_model(**generation.SHAPE), tmp_path / "hf")
    texts = ["Once upon a time", "To be, or", "a", "the model of the folder", "shape", "I", "what it has", "2 + 2"]
    (tmp_path / "prompts").write_text("\n".join(texts))
    flags = generation.flags(generation.SHAPE, folder, folder, seq_length=64, max_new_tokens=24)
    flags |= {"converted_dir": tmp_path / "megatron", "prompts": tmp_path / "prompts", "output": tmp_path / "said"}
    script = ROOT / "tasks" / "inference" / "generate.py"
    train(tiny(**flags), megatron=checkout, script=script).succeeded()
    model, tokenizer = hugging_face.load(folder), HuggingFaceTokenizer(folder).hf
    for line, text in zip((tmp_path / "said").read_text().splitlines(), texts, strict=True):
        said = json.loads(line)
        prompt = tokenizer(text)["input_ids"]
        tokens = generation.transformers_greedy(model, prompt, 24)
        if tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
        expected = Request(0, prompt, SamplingOptions(), tokenizer, tokens=tokens)
        assert (said["tokens"], said["completion"]) == (len(tokens), expected.text)

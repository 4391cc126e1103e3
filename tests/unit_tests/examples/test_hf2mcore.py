"""examples/mixtral/hf2mcore_convertor.sh: the seed's positional arguments become a command of util.py."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import upstream
from tests.unit_tests.checkpoint import small_models
from tests.unit_tests.checkpoint.small_models import MIXTRAL
from tools.checkpoint import util

SCRIPT = upstream.ROOT / "examples" / "mixtral" / "hf2mcore_convertor.sh"

# As the seed has them.
DENSE = shlex.split("7B /hf/Mistral-7B-v0.1 ../../../ /hf/Mistral-7B-v0.1 /out/to-mcore-tp4-pp1 4 1 0 0 0 0 false")
SPARSE = shlex.split("8x7B /hf/Mixtral-8x7B ../../../ /hf/Mixtral-8x7B /out/tp4-pp1-ep4 4 1 0 8 2 4 false 16")


def run(*arguments: str, shell: str = "bash", **variables: str) -> subprocess.CompletedProcess:
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    return subprocess.run([shell, str(SCRIPT), *arguments], env=environ, capture_output=True, text=True)


def options(*arguments: str, shell: str = "bash"):
    """What util.py makes of the command that the script would run."""
    result = run(*arguments, shell=shell, DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    python, script, *flags = shlex.split(result.stdout)
    assert python == "python" and Path(script) == Path(util.__file__)
    parser = util.make_parser()
    found = parser.parse_args(flags)
    util.check(parser, found)
    return util.to_options(found)


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_seeds_dense_example(shell):
    found = options(*DENSE, shell=shell)
    assert (found.loads, found.saves) == ("huggingface", "megatron")
    assert (str(found.load_dir), str(found.save_dir)) == ("/hf/Mistral-7B-v0.1", "/out/to-mcore-tp4-pp1")
    assert (found.tensor, found.pipeline, found.expert, found.extra_vocab_size, found.num_experts) == (4, 1, 1, 0, 0)


def test_the_seeds_sparse_example():
    found = options(*SPARSE)
    assert (found.tensor, found.pipeline, found.expert, found.expert_tensor) == (4, 1, 4, 0)
    assert (found.num_experts, found.topk, str(found.tokenizer)) == (8, 2, "/hf/Mixtral-8x7B")


def changed(base: list[str], **arguments: str) -> list[str]:
    """``base`` with the arguments at some positions, named a1, a2…, replaced."""
    found = list(base)
    for name, value in arguments.items():
        found[int(name[1:]) - 1] = value
    return found


def test_the_way_back():
    found = options(*changed(SPARSE, a4="/runs/release", a12="true"))
    assert (found.loads, found.saves, str(found.load_dir)) == ("megatron", "huggingface", "/runs/release")
    assert str(found.hf_folder) == "/hf/Mixtral-8x7B" and found.true_vocab_size is None
    assert (found.num_experts, found.topk, found.tensor) == (8, 2, 1)


def test_the_way_back_with_further_tokens(tmp_path):
    original = small_models.save(tmp_path / "original", MIXTRAL)
    back = changed(SPARSE, a8="7", a12="true")
    assert options(*changed(back, a2=str(original))).true_vocab_size == MIXTRAL.vocab_size + 7
    result = run(*back, DRY_RUN="1")
    assert result.returncode == 2 and "argument 2 (HG_CKPT_PATH), /hf/Mixtral-8x7B, has no config.json" in result.stderr


def test_further_options_reach_util():
    found = options(*DENSE, "--ckpt-format", "torch", "--verify")
    assert found.ckpt_format == "torch" and found.verify


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SPARSE[:11], "argument 12 (mg2hf) is missing"),
        (SPARSE[:1], "argument 2 (HG_CKPT_PATH) is missing"),
        ([*SPARSE, "16"], "14 arguments are too many"),
        ([*DENSE[:8], "0", *DENSE[8:]], "argument 12 (mg2hf) is '0', but must be true or false"),
        (changed(SPARSE, a1="13B"), "argument 1 (MODEL_SIZE) is '13B', but must be 7B, 8x7B or 8x22B"),
        (changed(SPARSE, a6="four"), "argument 6 (TP) is 'four', but must be a whole number from 1 on"),
        (changed(SPARSE, a7="0"), "argument 7 (PP) is '0'"),
        (changed(SPARSE, a8="-1"), "argument 8 (EXTRA_VOCAB_SIZE) is '-1'"),
        (changed(SPARSE, a9="0"), "argument 9 (NUM_EXPERTS) is '0'"),
        (changed(DENSE, a9="8"), "a 7B model has no experts"),
        (changed(SPARSE, a13="24"), "argument 13 (WS) is 24, but must be a multiple of TP x PP x EP = 16"),
        (changed(SPARSE, a13="many"), "argument 13 (WS) is 'many'"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and not result.stdout
    assert message in result.stderr.splitlines()[0]
    # All are listed, so that one that is missing in the middle is seen.
    assert [line.partition(": ")[2] for line in result.stderr.splitlines()[1:]] == arguments


def test_without_arguments_it_explains_itself():
    result = run()
    assert result.returncode == 2
    for name in ("MODEL_SIZE", "EXTRA_VOCAB_SIZE", "mg2hf", "DRY_RUN=1"):
        assert name in result.stderr
    assert "BASH_VERSION" not in result.stderr


def test_there_and_back(tmp_path):
    original = small_models.save(tmp_path / "original", MIXTRAL)
    mine = changed(
        SPARSE, a2=str(original), a4=str(original), a5=str(tmp_path / "mg"), a6="2", a9="4", a11="2", a13="4"
    )
    there = run(*mine, "--workers", "2")
    assert there.returncode == 0, there.stderr
    back = run(*changed(mine, a4=str(tmp_path / "mg"), a5=str(tmp_path / "back"), a12="true"), "--verify")
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    again = run(*mine)
    assert again.returncode == 1 and f"{tmp_path}/mg exists already" in again.stderr

"""tools/checkpoint/util.py: the seeds' command lines, what it says, how it refuses, how it is stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options
from tests.interrupts import hear_interrupts
from tests.unit_tests.checkpoint import small_models
from tests.unit_tests.checkpoint.small_models import MIXTRAL
from tools.checkpoint import util

SCRIPT = Path(util.__file__)


@pytest.fixture
def original(tmp_path) -> Path:
    return small_models.save(tmp_path / "Mixtral-8x7B", MIXTRAL)


def words(text: str, **names: Path) -> list[str]:
    """The words of a command line with {names} in it."""
    return text.format(**names).split()


def parsed(*flags: str) -> Options:
    parser = util.make_parser()
    options = parser.parse_args(["--save-dir", "out", "--load-dir", "in", *flags])
    util.check(parser, options)
    return util.to_options(options)


def test_the_three_ways_of_the_seeds(original, tmp_path, capsys):
    there = """--model-type GPT --loader mixtral_hf --saver mixtral --load-dir {original}/ --save-dir {one}/
        --tokenizer-model {original}/tokenizer.model --target-tensor-parallel-size 1
        --target-pipeline-parallel-size 2 --target-expert-parallel-size 2"""
    other = """--model-type GPT --loader mixtral_mg --saver mixtral --load-dir {one}/ --save-dir {two}/
        --target-tensor-parallel-size 1 --target-pipeline-parallel-size 2 --target-expert-parallel-size 1"""
    back = """--model-type GPT --loader mixtral_mg --saver mixtral --save-model-type huggingface
        --load-dir {two}/ --save-dir {original}/"""
    folders = {"original": original, "one": tmp_path / "one", "two": tmp_path / "two"}
    for command in (there, other, back):
        assert util.main(words(command, **folders)) == 0
    shown = capsys.readouterr().err
    assert f"{original}: Mixtral, 2 layers, 4 experts, {len(MIXTRAL.tensors())} tensors, bfloat16." in shown
    assert re.search(rf"{original}/mg2hg is ready, after \d+ s\.", shown)
    before, after = small_models.weights(original), small_models.weights(original / "mg2hg")
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert util.main(["--verify", "--save-dir", str(tmp_path / "two")]) == 0
    assert f"two: all {len(before)} tensors are what conversion.json says." in capsys.readouterr().err


def test_every_flag_arrives():
    flags = """--loader mistral_mg --saver mistral --ckpt-step 30
        --true-vocab-size 99 --hf-folder hf --tokenizer-model t
        --num-experts 0 --moe-router-topk 0 --target-tensor-parallel-size 2 --target-pipeline-parallel-size 3
        --target-expert-parallel-size 4 --target-expert-tensor-parallel-size 5
        --target-num-layers-per-virtual-pipeline-stage 6 --target-decoder-first-pipeline-num-layers 7
        --target-decoder-last-pipeline-num-layers 8 --make-vocab-size-divisible-by 9 --extra-vocab-size 10
        --ckpt-format torch --transformer-impl local --no-moe-grouped-gemm --fp16 --workers 11
        --verify --trust-pickle"""
    options = parsed(*flags.split())
    assert options == Options(
        load_dir=Path("in"),
        save_dir=Path("out"),
        loads="megatron",
        saves="megatron",
        step=30,
        trust=True,
        true_vocab_size=99,
        hf_folder=Path("hf"),
        tokenizer=Path("t"),
        num_experts=0,
        topk=0,
        tensor=2,
        pipeline=3,
        expert=4,
        expert_tensor=5,
        layers_per_virtual_stage=6,
        first_layers=7,
        last_layers=8,
        make_vocab_size_divisible_by=9,
        extra_vocab_size=10,
        dtype=torch.float16,
        ckpt_format="torch",
        build=type(options.build)("local", False),
        workers=11,
        verify=True,
    )


@pytest.mark.parametrize("flags", [["--bf16"], ["--params-dtype", "bf16"]])
def test_two_spellings_of_the_dtype(flags):
    assert parsed("--loader", "mixtral_hf", *flags).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--save-dir out", "--load-dir is missing"),
        ("--load-dir in --loader mixtral_hf", "required: --save-dir"),
        ("--load-dir in --save-dir out", "--loader is missing: mixtral_hf, mistral_hf, mixtral_mg, mistral_mg"),
        ("--load-dir in --save-dir out --loader llama", "invalid choice: 'llama'"),
        ("--load-dir in --save-dir out --loader mixtral_hf --save-model-type huggingface", "nothing to convert"),
        (
            "--load-dir in --save-dir out --loader mixtral_hf --ckpt-step 3",
            "--ckpt-step is only for a Megatron-LM source",
        ),
        (
            "--load-dir in --save-dir out --loader mixtral_mg --save-model-type huggingface "
            "--target-expert-parallel-size 2",
            "--target-expert-parallel-size is only for a Megatron-LM result",
        ),
        ("--load-dir in --save-dir out --loader mixtral_hf --target-tensor-parallel-size 0", "0 is not at least 1"),
        ("--load-dir in --save-dir out --loader mixtral_hf --workers x", "'x' is no whole number"),
        ("--load-dir in --save-dir out --loader mixtral_hf --bf16 --fp16", "not allowed with argument"),
        ("--load-dir in --save-dir out --loader mixtral_hf --target-tensor-parallel 2", "unrecognized arguments"),
    ],
)
def test_a_wrong_command_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        util.main(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_sizes_of_one_are_no_layout():
    """Scripts name them for every way."""
    assert parsed("--loader", "mixtral_mg", "--save-model-type", "huggingface", "--target-expert-parallel-size", "1")


def test_an_error_is_one_line_and_exit_1(original, tmp_path, capsys):
    command = words(
        "--loader mixtral_hf --load-dir {original} --save-dir {out}", original=original, out=tmp_path / "out"
    )
    assert util.main([*command, "--target-tensor-parallel-size", "3"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("util.py: --target-tensor-parallel-size 3")
    assert [entry.name for entry in tmp_path.iterdir()] == [original.name]


def test_an_error_of_the_system_names_the_file(original, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("ascend_patch.checkpoint.convert.write", fail)
    command = words(
        "--loader mixtral_hf --load-dir {original} --save-dir {out}", original=original, out=tmp_path / "out"
    )
    assert util.main(command) == 1
    assert "util.py: /some/file: Permission denied." in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    code = (
        f"import runpy, sys; sys.argv = ['util.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        f"except SystemExit as stop: print('torch' in sys.modules, stop.code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("False 0\n"), result.stdout + result.stderr
    assert "tools/checkpoint/util.py --model-type GPT --loader mixtral_hf" in result.stdout


def test_an_interrupt_is_one_line_and_the_same_command_continues(original, tmp_path):
    """SIGINT, as from Ctrl-C, in the middle of copying."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(SCRIPT),
        "--loader",
        "mixtral_hf",
        "--load-dir",
        str(original),
        "--save-dir",
        str(out),
    ]
    slow = tmp_path / "sitecustomize.py"
    slow.write_text(
        "import os, time\n"
        "write = os.pwrite\n"
        "def slowly(*args):\n"
        "    time.sleep(0.05)\n"
        "    return write(*args)\n"
        "os.pwrite = slowly\n"
    )
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)
    journal = tmp_path / "out.unfinished" / "conversion.journal"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count('"tensor"') > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert "util.py: interrupted. The same command continues where it stopped." in shown
    assert not out.exists() and not (out / "latest_checkpointed_iteration.txt").exists()

    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"Continuing: \d+ of {len(MIXTRAL.tensors())} tensors are written", result.stderr)
    assert util.main(["--verify", "--save-dir", str(out)]) == 0


def test_at_least_two_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert util.default_workers() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert util.default_workers() == 8

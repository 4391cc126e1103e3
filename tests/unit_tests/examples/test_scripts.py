"""The example scripts: what they hand to upstream, what upstream makes of it, and how they refuse."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import upstream

EXAMPLES = upstream.ROOT / "examples" / "mixtral"
# script -> devices, vocabulary, parameters as the model cards print them, layout
MODELS = {
    "pretrain_mixtral_8x7b_ptd.sh": (16, 32000, "46.7B", {"TP": 1, "PP": 8, "EP": 2, "CP": 1}),
    "pretrain_mixtral_8x7b_32k_ptd.sh": (32, 32000, "46.7B", {"TP": 8, "PP": 1, "EP": 4, "CP": 4}),
    "pretrain_mixtral_8x22b_ptd.sh": (64, 32768, "140.6B", {"TP": 2, "PP": 8, "EP": 4, "CP": 1}),
    "pretrain_mistral_7b_ptd.sh": (8, 32000, "7.24B", {"TP": 2, "PP": 1, "EP": 1, "CP": 1}),
    "tune_mixtral_8x7b_full_ptd.sh": (16, 32000, "46.7B", {"TP": 1, "PP": 8, "EP": 2, "CP": 1}),
    "tune_mixtral_8x7b_lora_ptd.sh": (8, 32000, "46.9B", {"TP": 2, "PP": 2, "EP": 2, "CP": 1}),
    "pretrain_mixtral_tiny.sh": (2, 32000, "39.1M", {"TP": 1, "PP": 1, "EP": 2, "CP": 1}),
}
LORA = "tune_mixtral_8x7b_lora_ptd"
PARSED_LAYOUT = {
    "TP": "tensor_model_parallel_size",
    "PP": "pipeline_model_parallel_size",
    "EP": "expert_model_parallel_size",
    "CP": "context_parallel_size",
}

SWITCHES = (
    "use_distributed_optimizer",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "use_flash_attn",
    "bf16",
    "swiglu",
)


def run(script: str, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script in an environment that sets nothing but ``variables``."""
    environ = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(["bash", str(EXAMPLES / script), *flags], env=environ, capture_output=True, text=True)


def dry_run(script: str, *flags: str, **variables: str) -> list[str]:
    """The words of the command a script would run."""
    result = run(script, *flags, DRY_RUN="1", **variables)
    assert result.returncode == 0, result.stderr
    return shlex.split(result.stdout)


def upstream_flags(command: list[str]) -> list[str]:
    return command[command.index("ascend_patch.run") + 1 :]


def parameters_as_printed(count: int, printed: str) -> str:
    """``count`` with the unit and the decimals of ``printed``."""
    decimals = len(printed[:-1].partition(".")[2])
    return f"{count / {'B': 1e9, 'M': 1e6}[printed[-1]]:.{decimals}f}{printed[-1]}"


def test_every_script_is_listed_here():
    assert {path.name for path in EXAMPLES.glob("*_ptd.sh")} | {"pretrain_mixtral_tiny.sh"} == set(MODELS)


@pytest.fixture(scope="module", params=upstream.RELEASES)
def descriptions(request) -> dict[str, dict]:
    """By script, what a release of upstream makes of its flags; "TP2 PP4" is the seeds' other layout of 8x7B."""
    jobs = {
        script: {"world_size": world_size, "vocabulary": vocabulary, "flags": upstream_flags(dry_run(script))}
        for script, (world_size, vocabulary, _, _) in MODELS.items()
    }
    other = dry_run("pretrain_mixtral_8x7b_ptd.sh", TP="2", PP="4", EP="2")
    jobs["TP2 PP4"] = {"world_size": 16, "vocabulary": 32000, "flags": upstream_flags(other)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("describe_model.py"))],
        env=upstream.environment(
            request.param,
            **{"ASCEND_PATCH": 1, "ASCEND_PATCH_DEVICE": "cpu", "CUDA_DEVICE_MAX_CONNECTIONS": 1},
            **{"RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 8},
        ),
        input=json.dumps(list(jobs.values())),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return dict(zip(jobs, json.loads(result.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("script", MODELS)
def test_upstream_takes_every_flag_and_builds_the_published_model(descriptions, script):
    world_size, _, printed, layout = MODELS[script]
    found = descriptions[script]
    assert parameters_as_printed(found["parameters"], printed) == printed
    parsed = found["parsed"]
    assert {name: parsed[argument] for name, argument in PARSED_LAYOUT.items()} == layout
    assert parsed["world_size"] == world_size
    assert parsed["sequence_parallel"] == (layout["TP"] > 1)
    assert parsed["transformer_impl"] == "transformer_engine"
    assert parsed["distributed_backend"] == "nccl"
    for switch in SWITCHES:
        assert parsed[switch] is True, switch
    mixture = parsed["num_experts"] == 8
    assert mixture == ("mixtral" in script)
    assert (parsed["moe_grouped_gemm"], parsed["moe_permute_fusion"]) == (mixture, mixture)


def test_the_other_layout_of_16_devices(descriptions):
    parsed = descriptions["TP2 PP4"]["parsed"]
    assert {name: parsed[argument] for name, argument in PARSED_LAYOUT.items()} == {"TP": 2, "PP": 4, "EP": 2, "CP": 1}
    assert parsed["data_parallel_size"] == 2
    assert parsed["sequence_parallel"] is True


def test_mistral_sees_4096_tokens_and_mixtral_all():
    mistral = upstream_flags(dry_run("pretrain_mistral_7b_ptd.sh"))
    assert mistral[mistral.index("--window-size") + 1] == "4095,0"  # to the left, besides the token itself
    assert mistral[mistral.index("--rotary-base") + 1] == "10000"
    for script in MODELS.keys() - {"pretrain_mistral_7b_ptd.sh"}:
        flags = upstream_flags(dry_run(script))
        assert "--window-size" not in flags
        assert flags[flags.index("--rotary-base") + 1] == "1000000"


@pytest.mark.parametrize("script", MODELS)
def test_everything_can_be_set_from_the_environment(script):
    variables = {
        **{"GPUS_PER_NODE": "4", "NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6123"},
        **{"MAX_RESTARTS": "4"},
        **{"TP": "2", "PP": "3", "EP": "4", "CP": "5", "MICRO_BATCH": "6", "GLOBAL_BATCH": "720", "SEQ_LENGTH": "512"},
        **{"TRAIN_ITERS": "77", "LR": "3e-4", "MIN_LR": "3e-5", "LR_WARMUP_FRACTION": "0.2", "SEED": "9"},
        **{"DATA_PATH": "0.3 a_text_document 0.7 b_text_document", "TOKENIZER_MODEL": "to ken", "SPLIT": "9,1,0"},
        **{"CKPT_SAVE_DIR": "save", "CKPT_LOAD_DIR": "load", "TENSORBOARD_DIR": "board", "DATA_CACHE_PATH": "cache"},
        **{"SAVE_INTERVAL": "11", "EVAL_INTERVAL": "12", "EVAL_ITERS": "13", "LOG_INTERVAL": "14", "NUM_WORKERS": "1"},
    }
    flags = {
        **{"--nproc-per-node": "4", "--nnodes": "3", "--node-rank": "2", "--master-addr": "10.0.0.1"},
        **{"--master-port": "6123", "--tensor-model-parallel-size": "2", "--pipeline-model-parallel-size": "3"},
        **{"--context-parallel-size": "5", "--micro-batch-size": "6", "--global-batch-size": "720"},
        **{"--seq-length": "512", "--train-iters": "77", "--lr": "3e-4", "--min-lr": "3e-5", "--seed": "9"},
        **{"--lr-warmup-fraction": "0.2", "--tokenizer-model": "to ken", "--split": "9,1,0", "--save": "save"},
        **{"--load": "save", "--pretrained-checkpoint": "load"},
        **{"--tensorboard-dir": "board", "--data-cache-path": "cache", "--save-interval": "11"},
        **{"--eval-interval": "12", "--eval-iters": "13", "--log-interval": "14", "--num-workers": "1"},
    }
    flags["--max-restarts"] = "4"
    if "mixtral" in script:
        flags["--expert-model-parallel-size"] = "4"
    words = dry_run(script, **variables)
    assert {flag: words[words.index(flag) + 1] for flag in flags} == flags
    blend = words.index("--data-path")
    assert words[blend + 1 : blend + 5] == ["0.3", "a_text_document", "0.7", "b_text_document"]


def test_a_checkout_is_run_by_its_own_script():
    words = dry_run("pretrain_mixtral_8x7b_ptd.sh", MEGATRON_PATH="/somewhere/Megatron-LM")
    assert "/somewhere/Megatron-LM/pretrain_gpt.py" in words
    assert "ascend_patch.run" not in words


def test_further_flags_come_last():
    assert dry_run("pretrain_mixtral_tiny.sh", "--lr", "7", "--spec", "a b")[-4:] == ["--lr", "7", "--spec", "a b"]


def test_resuming_is_from_where_it_saves():
    for start in ({}, {"CKPT_LOAD_DIR": "elsewhere"}):
        words = dry_run("pretrain_mixtral_tiny.sh", CKPT_SAVE_DIR="here", **start)
        assert words[words.index("--load") + 1] == "here"
        assert ("--pretrained-checkpoint" in words) == bool(start)


@pytest.fixture
def paths(tmp_path):
    """Variables naming data and a tokenizer that are there."""
    for name in ("text.bin", "text.idx"):
        (tmp_path / name).touch()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.model").touch()
    return {
        "DATA_PATH": str(tmp_path / "text"),
        "TOKENIZER_MODEL": str(tokenizer),
        "CKPT_SAVE_DIR": str(tmp_path / "save"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DATA_PATH": "/nowhere/text"}, "/nowhere/text.bin and /nowhere/text.idx are not both there"),
        ({"DATA_PATH": "1.0 /nowhere/text"}, "/nowhere/text.bin"),
        ({"TOKENIZER_MODEL": "/nowhere"}, "TOKENIZER_MODEL=/nowhere is not a Hugging Face tokenizer folder"),
        ({"MEGATRON_PATH": "/nowhere"}, "MEGATRON_PATH=/nowhere has no pretrain_gpt.py"),
        ({"CKPT_LOAD_DIR": "/nowhere"}, "CKPT_LOAD_DIR=/nowhere holds no Megatron checkpoint"),
        ({"TP": "two"}, "TP=two is not a positive whole number"),
        ({"GLOBAL_BATCH": "0"}, "GLOBAL_BATCH=0 is not a positive whole number"),
        ({"PRECISION": "fp8"}, "PRECISION=fp8 is neither bf16 nor fp16"),
        ({"FLASH_ATTENTION": "1"}, "FLASH_ATTENTION=1 is neither true nor false"),
        ({"VALID_DATA_PATH": "/nowhere/text"}, "VALID_DATA_PATH: /nowhere/text.bin and /nowhere/text.idx are not both"),
        ({"MP_DATASET_TYPE": "raw"}, "MP_DATASET_TYPE=raw reads a file of records, and "),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(paths, change, message):
    result = run("pretrain_mixtral_tiny.sh", **{**paths, **change})
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("pretrain_mixtral_tiny.sh: ")
    assert not Path(paths["CKPT_SAVE_DIR"]).exists()


def test_what_is_started(paths, tmp_path):
    """A stand-in for torchrun shows the arguments and the environment that it gets."""
    stand_in = tmp_path / "torchrun"
    stand_in.write_text(
        '#!/bin/sh\necho "ASCEND_PATCH=$ASCEND_PATCH $CUDA_DEVICE_MAX_CONNECTIONS"\necho "$@"\nexit 3\n'
    )
    stand_in.chmod(0o755)
    result = run("pretrain_mixtral_tiny.sh", **paths, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 3
    environ, arguments = result.stdout.splitlines()
    assert environ == "ASCEND_PATCH=1 1"
    assert arguments.split() == dry_run("pretrain_mixtral_tiny.sh", **paths)[1:]


def test_what_is_computed_can_be_set():
    words = dry_run(
        "pretrain_mixtral_tiny.sh", TP="2", EP="1", GPUS_PER_NODE="2", PRECISION="fp16", LR_WARMUP_ITERS="3"
    )
    assert "--fp16" in words and "--bf16" not in words and "--sequence-parallel" in words
    assert words[words.index("--lr-warmup-iters") + 1] == "3" and "--lr-warmup-fraction" not in words
    off = {"DISTRIBUTED_OPTIMIZER": "false", "FLASH_ATTENTION": "false", "SEQUENCE_PARALLEL": "false"}
    words = dry_run("pretrain_mixtral_tiny.sh", TP="2", EP="1", GPUS_PER_NODE="2", **off)
    assert not {"--use-distributed-optimizer", "--overlap-param-gather", "--use-flash-attn", "--sequence-parallel"} & {
        *words
    }


def test_data_to_validate_on_may_be_other_data():
    words = dry_run("pretrain_mixtral_tiny.sh", DATA_PATH="0.3 a 0.7 b", VALID_DATA_PATH="c")
    train, valid = words.index("--train-data-path"), words.index("--valid-data-path")
    assert words[train + 1 : valid + 2] == ["0.3", "a", "0.7", "b", "--valid-data-path", "c"]
    assert not {"--data-path", "--split"} & {*words}  # upstream takes one of the two ways


TUNE = "tune_mixtral_8x7b_full_ptd.sh"


def test_tuning_begins_with_converted_weights():
    words = dry_run(TUNE)
    start = words[words.index("--pretrained-checkpoint") + 1]
    assert start == "./model_weights/Mixtral-8x7B-tp1-pp8-ep2"
    assert words[words.index("--load") + 1] == words[words.index("--save") + 1] != start
    assert "--finetune" not in words  # upstream's own choice, made anew by each start


@pytest.mark.parametrize(
    ("variables", "flag"),
    [({}, "--sft"), ({"CONVERSATIONS": "apart"}, "--sft"), ({"CONVERSATIONS": "together"}, "--is-instruction-dataset")],
)
def test_tuning_takes_instructions(variables, flag):
    words = dry_run(TUNE, **variables)
    assert {"--sft", "--is-instruction-dataset"} & {*words} == {flag}
    assert "--no-create-attention-mask-in-dataloader" in words


@pytest.mark.parametrize(
    ("variables", "types"),
    [
        ({}, []),
        ({"CP": "2"}, ["a2a"]),
        ({"CP": "2", "CP_COMM_TYPE": "allgather"}, ["allgather"]),
        ({"CP": "2", "CONVERSATIONS": "together"}, []),
    ],
)
def test_tuning_shares_packed_samples_in_a_way_that_can(variables, types):
    words = dry_run(TUNE, **variables)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--cp-comm-type"] == types


@pytest.mark.parametrize("variables", [{}, {"MP_DATASET_TYPE": "raw"}])
def test_tuning_finds_its_data(paths, tmp_path, variables):
    """Prepared instructions, or a file of records; then the weights are looked for."""
    (tmp_path / "alpaca.jsonl").touch()
    (tmp_path / "alpaca_packed_input_ids_document.idx").touch()
    data = tmp_path / ("alpaca.jsonl" if variables else "alpaca")
    weights = {"CKPT_LOAD_DIR": str(tmp_path / "weights")}
    result = run(TUNE, **paths | weights | variables | {"DATA_PATH": str(data)})
    assert f"CKPT_LOAD_DIR={tmp_path}/weights holds no Megatron checkpoint" in result.stderr


def test_a_run_that_can_resume_needs_its_weights_no_more(paths, tmp_path):
    save = Path(paths["CKPT_SAVE_DIR"])
    save.mkdir()
    (save / "latest_checkpointed_iteration.txt").write_text("5")
    stand_in = tmp_path / "torchrun"
    stand_in.write_text("#!/bin/sh\nexit 3\n")
    stand_in.chmod(0o755)
    result = run(TUNE, **paths, CKPT_LOAD_DIR="/nowhere", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (result.returncode, result.stderr) == (3, "")


def test_conversations_are_apart_or_together():
    result = run(TUNE, CONVERSATIONS="mixed")
    assert result.returncode == 1 and "CONVERSATIONS=mixed is neither apart nor together." in result.stderr


def test_the_lora_script_tunes_the_model_that_the_other_tunes_in_full():
    same = {"NNODES": "1", "TP": "2", "PP": "2", "LR": "1e-4", "MIN_LR": "1e-5"}
    tuned, plain = (upstream_flags(dry_run(script, **same)) for script in (f"{LORA}.sh", TUNE))
    added = [
        "--sft",
        "--no-create-attention-mask-in-dataloader",
        "--lora-target-modules",
        "linear_qkv",
        "linear_proj",
        "linear_fc1",
        "linear_fc2",
    ]
    added += ["--lora-r", "16", "--lora-alpha", "32", "--lora-dropout", "0.0"]
    start = tuned.index(added[0])
    assert tuned[start : start + len(added)] == added
    assert tuned[:start] == plain[:start]
    assert tuned[tuned.index("--save") + 1] == tuned[tuned.index("--load") + 1] == "./ckpt/Mixtral-8x7B-lora"
    assert tuned[tuned.index("--pretrained-checkpoint") + 1] == "./model_weights/Mixtral-8x7B"
    changed = upstream_flags(dry_run(f"{LORA}.sh", LORA_R="8", LORA_TARGETS="router linear_qkv"))
    start = changed.index("--lora-target-modules")
    assert changed[start + 1 : start + 5] == ["router", "linear_qkv", "--lora-r", "8"]

"""examples/mistral/run_mcore_mistral.sh: what each of the 26 arguments becomes, and how wrong ones are named."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import upstream

SCRIPT = upstream.ROOT / "examples" / "mistral" / "run_mcore_mistral.sh"
#: The arguments in the order of Pai-Megatron-Patch's document, with the values of its example of pretraining.
DENSE = {
    **{"ENV": "dsw", "MODEL_SIZE": "7B", "BATCH_SIZE": "1", "GLOBAL_BATCH_SIZE": "8", "LR": "1e-5", "MIN_LR": "1e-6"},
    **{"SEQ_LEN": "128", "PAD_LEN": "128", "PR": "bf16", "TP": "4", "PP": "1", "CP": "1", "EP": "1", "SP": "true"},
    **{"DO": "true", "FL": "true", "SFT": "false", "AC": "false", "OPTIMIZER_OFFLOAD": "false"},
    **{"SAVE_INTERVAL": "100000", "DATASET_PATH": "/data/wudao", "VALID_DATASET_PATH": "/data/other"},
    **{"PRETRAIN_CHECKPOINT_PATH": "/ckpt/Mistral", "TRAIN_TOKENS_OR_ITERS": "10000", "WARMUP_TOKENS_OR_ITERS": "100"},
    **{"OUTPUT_BASEPATH": "/out"},
}
NAMES = list(DENSE)
SPARSE = DENSE | {"MODEL_SIZE": "8x7B", "TP": "1", "EP": "4"}
TUNING = {"SFT": "true", "TRAIN_TOKENS_OR_ITERS": "200", "WARMUP_TOKENS_OR_ITERS": "10"}
NODES = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6123"}


def run(*arguments: str, shell: str = "bash", **variables: str) -> subprocess.CompletedProcess:
    """The script in an environment that sets nothing but ``variables``."""
    environ = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run([shell, str(SCRIPT), *arguments], env=environ, capture_output=True, text=True)


class Mapping:
    """What ``DRY_RUN=1`` shows.

    Attributes:
        rows: (position, name, value, what it became).
        words: of the command.
    """

    def __init__(self, arguments: dict[str, str], *further: str, shell: str = "bash", **variables: str) -> None:
        result = run(*arguments.values(), *further, shell=shell, DRY_RUN="1", **variables)
        assert result.returncode == 0, result.stderr
        *table, command = result.stdout.splitlines()
        rows = [re.fullmatch(r" *(\d+)  (\w+) +(\S+) +(.*)", line) for line in table]
        self.rows = [row.groups() for row in rows if row]
        self.words = shlex.split(command)

    def __getitem__(self, name: str) -> str:
        return self.rows[NAMES.index(name)][3]

    def value(self, flag: str) -> str:
        return self.words[self.words.index(flag) + 1]


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("arguments", [DENSE, SPARSE, DENSE | TUNING, SPARSE | TUNING])
def test_every_argument_is_shown_and_all_it_became_is_in_the_command(arguments, shell):
    found = Mapping(arguments, shell=shell)
    assert [row[:3] for row in found.rows] == [(str(n), *pair) for n, pair in enumerate(arguments.items(), 1)]
    command = f" {' '.join(found.words)} "
    for *_, flags in found.rows:
        if flags.startswith("--"):
            for flag in re.findall(r"--\S+(?: (?!--)\S+)*", flags):
                assert f" {flag} " in command, flag


@pytest.mark.parametrize(
    ("changes", "became"),
    [
        ({"ENV": "dsw"}, "torchrun --nproc-per-node 8 --nnodes 1 --node-rank 0 --master-addr localhost"),
        ({"MODEL_SIZE": "7B"}, re.compile(r"--num-layers 32 .*--rotary-base 10000 --window-size 4095,0")),
        ({"MODEL_SIZE": "8x7B", "TP": "1"}, re.compile(r"--num-layers 32 .*--rotary-base 1000000 --num-experts 8 .*")),
        ({"BATCH_SIZE": "2"}, "--micro-batch-size 2"),
        ({"GLOBAL_BATCH_SIZE": "64", "TRAIN_TOKENS_OR_ITERS": "99999"}, "--global-batch-size 64"),
        ({"LR": "0.5"}, "--lr 0.5"),
        ({"MIN_LR": "0"}, "--min-lr 0"),
        ({"SEQ_LEN": "256"}, "--seq-length 256"),
        ({"PAD_LEN": "7"}, "nothing: text needs no padding"),
        ({"PAD_LEN": "128"} | TUNING, "as SEQ_LEN"),
        ({"PR": "fp16"}, "--fp16"),
        ({"PR": "bf16"}, "--bf16"),
        ({"PR": "fp8"}, "--bf16 --fp8-format hybrid"),
        ({"TP": "2"}, "--tensor-model-parallel-size 2"),
        ({"PP": "2"}, "--pipeline-model-parallel-size 2"),
        ({"CP": "2"}, "--context-parallel-size 2 --cp-comm-type a2a"),
        ({"CP": "2", "MODEL_SIZE": "8x7B", "TP": "1"}, "--context-parallel-size 2"),
        ({"CP": "2", "MODEL_SIZE": "8x7B", "TP": "1"} | TUNING, "--context-parallel-size 2 --cp-comm-type a2a"),
        ({"EP": "1"}, "nothing: no experts"),
        ({"EP": "8", "MODEL_SIZE": "8x7B", "TP": "1"}, "--expert-model-parallel-size 8"),
        ({"SP": "true"}, "--sequence-parallel"),
        ({"SP": "true", "TP": "1"}, "nothing: TP is 1"),
        ({"SP": "false"}, "nothing"),
        ({"DO": "true"}, "--use-distributed-optimizer --overlap-param-gather"),
        ({"DO": "false"}, "nothing"),
        ({"FL": "true"}, "--use-flash-attn"),
        ({"FL": "false"}, "nothing"),
        (TUNING, "--sft --no-create-attention-mask-in-dataloader"),
        ({"SFT": "false"}, "nothing"),
        ({"AC": "sel"}, "--recompute-granularity selective"),
        ({"AC": "full"}, "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"),
        ({"AC": "offload"}, "--cpu-offloading-num-layers 1"),
        ({"AC": "false"}, "nothing"),
        ({"OPTIMIZER_OFFLOAD": "static"}, "--optimizer-cpu-offload --use-precision-aware-optimizer"),
        ({"OPTIMIZER_OFFLOAD": "auto"}, "--optimizer-cpu-offload --use-precision-aware-optimizer"),
        ({"OPTIMIZER_OFFLOAD": "false"}, "nothing"),
        ({"SAVE_INTERVAL": "5"}, "--save-interval 5"),
        ({"DATASET_PATH": "/d"}, "--train-data-path /d"),
        ({"VALID_DATASET_PATH": "/v"}, "--valid-data-path /v"),
        ({"PRETRAIN_CHECKPOINT_PATH": "/c"}, "--pretrained-checkpoint /c --tokenizer-model /c/huggingface"),
        ({"TRAIN_TOKENS_OR_ITERS": "10000"}, "--train-iters 9"),  # 8 samples of 128 tokens each
        ({"TRAIN_TOKENS_OR_ITERS": "200"} | TUNING, "--train-iters 200"),
        ({"WARMUP_TOKENS_OR_ITERS": "3000"}, "--lr-warmup-iters 2"),
        ({"WARMUP_TOKENS_OR_ITERS": "10"} | TUNING, "--lr-warmup-iters 10"),
        ({"OUTPUT_BASEPATH": "/o"}, "--save /o/checkpoint --load /o/checkpoint --tensorboard-dir /o/tensorboard"),
    ],
)
def test_what_an_argument_becomes(changes, became):
    """The first of ``changes`` is the argument; no other than those that change say anything else."""
    found, before, name = Mapping(DENSE | changes), Mapping(DENSE), next(iter(changes))
    assert re.fullmatch(became, found[name]) if isinstance(became, re.Pattern) else found[name].strip() == became
    follows = {*changes, "SP", "EP", "PAD_LEN", "TRAIN_TOKENS_OR_ITERS", "WARMUP_TOKENS_OR_ITERS"}
    assert [row for row in found.rows if row[1] not in follows] == [row for row in before.rows if row[1] not in follows]


def test_several_machines():
    found = Mapping(DENSE | {"ENV": "dlc"}, **NODES, KUBERNETES_CONTAINER_RESOURCE_GPU="4")
    assert found["ENV"] == "torchrun --nproc-per-node 4 --nnodes 2 --node-rank 1 --master-addr 10.0.0.1"
    assert found.value("--master-port") == "6123"
    own = {"NNODES": "3", "NODE_RANK": "2", "GPUS_PER_NODE": "8"}
    found = Mapping(DENSE | {"ENV": "dlc", "GLOBAL_BATCH_SIZE": "12"} | TUNING, **NODES, **own)
    assert found["ENV"] == "torchrun --nproc-per-node 8 --nnodes 3 --node-rank 2 --master-addr 10.0.0.1"
    # dsw is one machine, whatever the environment says.
    assert Mapping(DENSE, **NODES)["ENV"].endswith("--nnodes 1 --node-rank 0 --master-addr localhost")


@pytest.mark.parametrize(
    ("mode", "flag"), [("full", "--recompute-num-layers"), ("offload", "--cpu-offloading-num-layers")]
)
def test_how_many_layers(mode, flag):
    assert Mapping(DENSE | {"AC": mode}, MP_AC_LAYERS="4").value(flag) == "4"
    result = run(*(DENSE | {"AC": mode}).values(), MP_AC_LAYERS="all")
    assert result.returncode == 2 and "MP_AC_LAYERS=all is not a positive whole number." in result.stderr


def test_a_smaller_model_and_the_other_variables():
    sizes = {"NUM_LAYERS": "2", "HIDDEN_SIZE": "64", "FFN_HIDDEN_SIZE": "96", "NUM_HEADS": "4", "NUM_QUERY_GROUPS": "2"}
    found = Mapping(SPARSE, **sizes, EVAL_ITERS="3", SEED="7", TOKENIZER_MODEL="/tok", MEGATRON_PATH="/megatron")
    flags = ("--num-layers", "--hidden-size", "--ffn-hidden-size", "--num-attention-heads", "--num-query-groups")
    assert [found.value(flag) for flag in flags] == list(sizes.values())
    assert [found.value(flag) for flag in ("--eval-iters", "--seed", "--tokenizer-model")] == ["3", "7", "/tok"]
    assert "/megatron/pretrain_gpt.py" in found.words
    found = Mapping(DENSE, WINDOW_SIZE="", ROTARY_BASE="1000000")  # Mistral 7B from v0.2 on
    assert "--window-size" not in found.words and found.value("--rotary-base") == "1000000"


def test_from_the_beginning_and_records_as_they_are():
    found = Mapping(DENSE | {"PRETRAIN_CHECKPOINT_PATH": "none"}, TOKENIZER_MODEL="/tok")
    assert "--pretrained-checkpoint" not in found.words and found.value("--tokenizer-model") == "/tok"
    paths = {"DATASET_PATH": "/a.json", "VALID_DATASET_PATH": "/b.json"}
    found = Mapping(DENSE | TUNING | paths, MP_DATASET_TYPE="raw")
    assert (found.value("--train-data-path"), found.value("--valid-data-path")) == ("/a.json", "/b.json")


def test_further_flags_come_last():
    assert Mapping(DENSE, "--lr", "7", "--spec", "a b").words[-4:] == ["--lr", "7", "--spec", "a b"]


WHOLE, FRACTION = "a whole number from 1 on", "a number such as 1e-5"
WRONG = {
    "ENV": ("local", "dsw, dlc"),
    "MODEL_SIZE": ("13B", "7B, 8x7B"),
    **{
        name: ("0", WHOLE) for name in ("BATCH_SIZE", "GLOBAL_BATCH_SIZE", "SEQ_LEN", "PAD_LEN", "TP", "PP", "CP", "EP")
    },
    **{"LR": ("fast", FRACTION), "MIN_LR": ("-1e-6", FRACTION), "PR": ("fp32", "fp16, bf16, fp8")},
    **{name: ("yes", "true, false") for name in ("SP", "DO", "FL", "SFT")},
    "AC": ("selective", "sel, full, offload, false"),
    "OPTIMIZER_OFFLOAD": ("true", "false, static, auto"),
    **{name: ("1.5", WHOLE) for name in ("SAVE_INTERVAL", "TRAIN_TOKENS_OR_ITERS")},
    **{name: ("", "a path") for name in NAMES if "PATH" in name},
    "WARMUP_TOKENS_OR_ITERS": ("ten", "a whole number from 0 on"),
}


def complaints(result: subprocess.CompletedProcess) -> list[str]:
    """What the script found wrong, and nothing else happened."""
    assert result.returncode == 2 and not result.stdout
    lines = result.stderr.splitlines()
    assert all(line.startswith("run_mcore_mistral.sh: ") for line in lines)
    return [line.partition(": ")[2] for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_is_named(name):
    value, allowed = WRONG[name]
    (found,) = complaints(run(*(DENSE | {name: value}).values()))
    assert re.fullmatch(
        rf'argument {NAMES.index(name) + 1}, {name} \([^()]*(\([^()]*\)[^()]*)*\): found "{value}", allowed: {allowed}',
        found,
    )


def test_all_that_is_wrong_is_said_at_once():
    found = complaints(run(*(DENSE | {"AC": "selective", "TP": "two", "FL": "1"}).values()))
    assert found == [
        'argument 10, TP (tensor parallel size): found "two", allowed: a whole number from 1 on',
        'argument 16, FL (flash attention): found "1", allowed: true, false',
        'argument 18, AC (activation checkpointing): found "selective", allowed: sel, full, offload, false',
    ]


def test_missing_and_superfluous_arguments():
    found = complaints(run(*list(DENSE.values())[:24]))
    assert [line.partition(" (")[0] for line in found] == [
        "argument 25, WARMUP_TOKENS_OR_ITERS",
        "argument 26, OUTPUT_BASEPATH",
    ]
    assert all("): missing, allowed: " in line for line in found)
    assert complaints(run(*DENSE.values(), "more")) == ['argument 27: found "more", allowed: none, there are 26']


@pytest.mark.parametrize(
    ("changes", "position", "allowed"),
    [
        ({"TP": "3"}, 10, "TP x PP x CP, now 3 x 1 x 1, must divide the number of devices, 8"),
        ({"EP": "2"}, 13, "1, as a 7B model has no experts"),
        ({"MODEL_SIZE": "8x7B", "EP": "4"}, 13, "what divides the 8 experts and the devices / TP / PP = 2"),
        ({"MODEL_SIZE": "8x7B", "SP": "false"}, 14, "true, as experts with TP of more than 1 need it"),
        ({"GLOBAL_BATCH_SIZE": "9"}, 4, "a multiple of BATCH_SIZE x data parallel size = 2"),
        ({"MIN_LR": "1e-4"}, 6, "at most LR, 1e-5"),
        ({"PAD_LEN": "64"} | TUNING, 8, "with SFT=true the same as SEQ_LEN, 128"),
        (
            {"TRAIN_TOKENS_OR_ITERS": "1023"},
            24,
            "at least the tokens of one iteration, GLOBAL_BATCH_SIZE x SEQ_LEN = 1024",
        ),
        ({"WARMUP_TOKENS_OR_ITERS": "10000"}, 25, "less than argument 24, 10000"),
        ({"PRETRAIN_CHECKPOINT_PATH": "none"}, 23, "none only where TOKENIZER_MODEL names the folder of a tokenizer"),
        (
            {"ENV": "dlc"},
            1,
            "dlc where the environment has NNODES (or WORLD_SIZE), NODE_RANK (or RANK) and MASTER_ADDR",
        ),
    ],
)
def test_arguments_that_do_not_fit_together(changes, position, allowed):
    (found,) = complaints(run(*(DENSE | changes).values()))
    assert found.startswith(f"argument {position}, {NAMES[position - 1]} (")
    assert f"allowed: {allowed}" in found


def test_variables_that_do_not_fit():
    (found,) = complaints(run(*DENSE.values(), MP_DATASET_TYPE="json"))
    assert found == 'MP_DATASET_TYPE: found "json", allowed: raw, idxmap'
    (found,) = complaints(run(*DENSE.values(), MP_DATASET_TYPE="raw"))
    assert found.startswith("argument 17, SFT (") and "as MP_DATASET_TYPE=raw is for instructions" in found
    assert complaints(run(*DENSE.values(), GPUS_PER_NODE="some")) == [
        "GPUS_PER_NODE=some is not a positive whole number."
    ]


def test_what_is_not_there_is_named_by_its_argument(tmp_path):
    """Before anything starts."""
    for name in ("text.bin", "text.idx"):
        (tmp_path / name).touch()
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "tokenizer.json").touch()
    there = {"DATASET_PATH": f"{tmp_path}/text", "VALID_DATASET_PATH": f"{tmp_path}/text"}
    there |= {"PRETRAIN_CHECKPOINT_PATH": str(tmp_path), "OUTPUT_BASEPATH": f"{tmp_path}/out"}
    for name, message in {
        "DATASET_PATH": "argument 21, DATASET_PATH: /nowhere.bin and /nowhere.idx are not both there",
        "VALID_DATASET_PATH": "argument 22, VALID_DATASET_PATH: /nowhere.bin and",
        "PRETRAIN_CHECKPOINT_PATH": "TOKENIZER_MODEL=/nowhere/huggingface is not a Hugging Face tokenizer folder",
        "ENV": f"argument 23, PRETRAIN_CHECKPOINT_PATH={tmp_path} holds no Megatron checkpoint",
    }.items():
        result = run(*(DENSE | there | {name: "dsw" if name == "ENV" else "/nowhere"}).values())
        assert result.returncode == 1 and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_arguments_it_explains_itself():
    result = run()
    assert result.returncode == 2
    for number, name in enumerate(NAMES, 1):
        assert re.search(rf"^ *{number}  {name} ", result.stderr, re.MULTILINE)
    assert "DRY_RUN=1" in result.stderr and "BASH_VERSION" not in result.stderr


JOBS = {
    "dense": (DENSE, {"micro_batch_size": 1, "global_batch_size": 8, "lr": 1e-5, "min_lr": 1e-6, "seq_length": 128}),
    "devices": (DENSE | {"TP": "2", "PP": "2"}, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
    "split": (
        DENSE | {"TP": "1", "CP": "2"},
        {"context_parallel_size": 2, "cp_comm_type": ["a2a"], "sequence_parallel": False},
    ),
    "half": (DENSE | {"PR": "fp16", "DO": "false"}, {"fp16": True, "bf16": False, "use_distributed_optimizer": False}),
    "sparse": (SPARSE, {"num_experts": 8, "expert_model_parallel_size": 4, "train_iters": 9, "lr_warmup_iters": 0}),
    "tuned": (SPARSE | TUNING, {"sft": True, "train_iters": 200, "lr_warmup_iters": 10, "use_flash_attn": True}),
    "paths": (DENSE, {"train_data_path": ["/data/wudao"], "valid_data_path": ["/data/other"], "save_interval": 100000}),
    "output": (DENSE, {"pretrained_checkpoint": "/ckpt/Mistral", "save": "/out/checkpoint", "load": "/out/checkpoint"}),
    "selective": (
        DENSE | {"AC": "sel", "FL": "false"},
        {"recompute_granularity": "selective", "use_flash_attn": False},
    ),
    "full": (DENSE | {"AC": "full"}, {"recompute_method": "uniform", "recompute_num_layers": 1}),
    "static": (DENSE | {"OPTIMIZER_OFFLOAD": "static"}, {"optimizer_cpu_offload": True}),
}


@pytest.fixture(scope="module", params=[upstream.RELEASES[0], upstream.RELEASES[-1]])
def parsed(request) -> dict[str, dict]:
    """By job, what a release of upstream parses; what is refused for now is looked at all the same."""
    jobs = []
    for arguments, _ in JOBS.values():
        words = Mapping(arguments).words
        flags = words[words.index("ascend_patch.run") + 1 :]
        jobs.append({"world_size": 8, "vocabulary": 32000, "flags": flags})
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("describe_model.py"))],
        env=upstream.environment(
            request.param,
            **{"ASCEND_PATCH": 1, "ASCEND_PATCH_DEVICE": "cpu", "CUDA_DEVICE_MAX_CONNECTIONS": 1},
            **{"ASCEND_PATCH_DISABLE": "arguments.transformer_engine,arguments.cpu"},
            **{"RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 8},
        ),
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return dict(zip(JOBS, json.loads(result.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("job", JOBS)
def test_upstream_understands_the_flags(parsed, job):
    expected = JOBS[job][1]
    assert {name: parsed[job]["parsed"][name] for name in expected} == expected
    billions = 46.7 if JOBS[job][0]["MODEL_SIZE"] == "8x7B" else 7.24
    assert abs(parsed[job]["parameters"] / 1e9 - billions) < 0.05

"""`make train` from end to end, with a stand-in for the example script that prints a log instead of training."""

import json
import os

import pytest

from tools.preprocess_data import DataError, Dataset
from tools.train import __main__ as train
from tools.train import settings, summary

SCRIPT = """\
#!/usr/bin/env bash
set -eu
common=(torchrun --nproc-per-node 2 --nnodes 1 --num-layers 2 --hidden-size ${HIDDEN_SIZE:-64} --ffn-hidden-size 96
    --num-attention-heads 8 --num-query-groups 2 --num-experts 8 --moe-router-topk 2 --seq-length 16
    --data-path $DATA_PATH --tokenizer-model $TOKENIZER_MODEL --global-batch-size 4
    --train-iters ${TRAIN_ITERS:-3} "$@")
if [[ ${DRY_RUN:-0} == 1 ]]; then printf '%q ' "${common[@]}"; exit; fi
echo "ascend_patch 0.1.0 · device cpu · 5 patches applied"
mkdir -p $CKPT_SAVE_DIR
echo "$@" > $CKPT_SAVE_DIR/../flags
if [[ -n ${FAIL:-} ]]; then echo "[rank1]: ValueError: it went wrong"; exit 1; fi
start=$(cat $CKPT_SAVE_DIR/latest_checkpointed_iteration.txt 2>/dev/null || echo 0)
for ((i = start + 1; i <= ${TRAIN_ITERS:-3}; i++)); do
    echo " iteration $i/ ${TRAIN_ITERS:-3} | elapsed time per iteration (ms): 50.0 | learning rate: 1.0E-03 |\\
 lm loss: 1.0E+0$((9 - i)) | load_balancing_loss: 1.1E+00 | grad norm: 2.5 |"
done
echo " validation loss at iteration ${TRAIN_ITERS:-3} | lm loss value: 6.5E+00 | lm loss PPL: 1.0E+04 |"
echo "[Rank 0] (after 3 iterations) memory (MB) | allocated: 10.0 | max allocated: 20.00 | reserved: 10.0"
echo -n ${TRAIN_ITERS:-3} > $CKPT_SAVE_DIR/latest_checkpointed_iteration.txt
echo '{"device": "cpu (translated)", "megatron": "0.19.2 (here)", "counts": {"applied": 5, "skipped": 1}}' \\
    > $ASCEND_PATCH_REPORT
"""


@pytest.fixture
def make_train(tmp_path, monkeypatch):
    """Call `make train` with variables; everything it writes goes to a temporary folder."""
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT)
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(train, "SCRIPT", script)
    monkeypatch.setattr(train, "prepare_dataset", lambda data, source: Dataset(data / "text", 799, 5000))
    monkeypatch.setattr(train, "prepare_tokenizer", lambda data: data / "tokenizer")
    monkeypatch.setattr(summary, "gemm_rate", lambda device, threads: 1e9)
    for name in ("NAME", "DATA", "FRESH", "TRAIN_ITERS", "SPLIT", "EVAL_ITERS"):
        monkeypatch.delenv(name, raising=False)

    def call(*flags, **variables):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            return train.main(list(flags))

    return call


def test_a_run_and_what_it_leaves(make_train, tmp_path, capsys):
    assert make_train() == 0
    folder = tmp_path / "runs" / "mixtral-tiny"
    assert {path.name for path in folder.iterdir()} >= {
        *("loss.png", "summary.json", "patches.json", "train.log", "run.json", "checkpoint")
    }
    found = json.loads((folder / "summary.json").read_text())
    assert (found["device"], found["first_loss"], found["last_loss"]) == ("cpu", 1e8, 1e6)
    assert (found["patches_applied"], found["patches_skipped"]) == (5, 1)
    assert found["tokens_per_second"] == 4 * 16 / 0.05
    assert found["gemm_fraction"] == pytest.approx(1280 * summary.model_of(command(tmp_path)).flops_per_token / 1e9)
    assert found["peak_memory_bytes"] == 20 * 2**20
    assert found["validation_loss"] == 6.5
    assert found["test_loss"] is None
    assert found["versions"]["megatron-core"] == "0.19.2"
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "iteration 3/3" in out
    assert "device cpu" in out
    assert "5 applied, 1 skipped" in out


def command(tmp_path):
    environ = {**os.environ, "DATA_PATH": "d", "TOKENIZER_MODEL": "t"}
    return settings.Command.of(tmp_path / "script.sh", environ)


def test_running_again_resumes_and_then_is_done(make_train, tmp_path, capsys):
    assert make_train() == 0
    assert (tmp_path / "runs/mixtral-tiny/flags").read_text() == "\n"
    assert make_train(TRAIN_ITERS="5") == 0
    assert "Resuming runs/mixtral-tiny from iteration 3" in capsys.readouterr().out
    assert (tmp_path / "runs/mixtral-tiny/flags").read_text() == "--override-opt_param-scheduler\n"
    found = json.loads((tmp_path / "runs/mixtral-tiny/summary.json").read_text())
    assert (found["iterations"], found["first_loss"], found["last_loss"]) == (5, 1e8, 1e4)
    assert make_train(TRAIN_ITERS="5") == 0
    assert "trained to iteration 5 already" in capsys.readouterr().out


def test_fresh_starts_anew(make_train, tmp_path):
    assert make_train() == 0
    (tmp_path / "runs/mixtral-tiny/mine").touch()
    assert make_train(FRESH="1") == 0
    assert not (tmp_path / "runs/mixtral-tiny/mine").exists()
    assert (tmp_path / "runs/mixtral-tiny/train.log").read_text().count("iteration 1/") == 1


def test_another_model_is_not_trained_into_the_same_run(make_train, capsys):
    assert make_train() == 0
    assert make_train(HIDDEN_SIZE="128") == 1
    error = capsys.readouterr().err
    assert "--hidden-size 64 -> 128" in error
    assert "FRESH=1" in error
    assert make_train(HIDDEN_SIZE="128", NAME="other") == 0


def test_a_failure_shows_the_reason(make_train, tmp_path, capsys):
    assert make_train(FAIL="1") == 1
    error = capsys.readouterr().err
    assert "make train: the training failed. ValueError: it went wrong" in error
    assert "runs/mixtral-tiny/train.log" in error
    assert not (tmp_path / "runs/mixtral-tiny/summary.json").exists()


def test_further_flags_reach_upstream(make_train, tmp_path):
    assert make_train("--train-iters", "9") == 0  # the later flag counts, though this stand-in ignores it
    assert (tmp_path / "runs/mixtral-tiny/flags").read_text() == "--train-iters 9\n"


def test_the_name_of_own_text(make_train, tmp_path):
    assert make_train(DATA="/some/where/poems.jsonl") == 0
    assert (tmp_path / "runs/poems/summary.json").is_file()


def test_few_documents_are_all_trained_on(make_train, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "prepare_dataset", lambda data, source: Dataset(data / "text", 3, 5000))
    seen = {}
    monkeypatch.setattr(train, "_train", lambda s, c, f, environ, *rest: seen.update(environ) or 0)
    assert make_train() == 0
    assert (seen["SPLIT"], seen["EVAL_ITERS"]) == ("100,0,0", "0")
    assert make_train(SPLIT="50,50,0") == 0
    assert seen["SPLIT"] == "50,50,0"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NAME": "../up"}, "NAME=../up cannot name a folder"),
        ({"NAME": ".."}, "NAME=.. cannot name a folder"),
        ({"FRESH": "yes"}, "FRESH=yes is neither 0"),
    ],
)
def test_settings_that_cannot_be(make_train, capsys, variables, message):
    assert make_train(**variables) == 1
    assert f"make train: {message}" in capsys.readouterr().err


def test_bad_text_stops_before_training(make_train, monkeypatch, capsys, tmp_path):
    def bad(data, source):
        raise DataError("my.jsonl, line 3: not JSON")

    monkeypatch.setattr(train, "prepare_dataset", bad)
    assert make_train(DATA="my.jsonl") == 1
    assert capsys.readouterr().err == "make train: my.jsonl, line 3: not JSON\n"
    assert not (tmp_path / "runs").exists()

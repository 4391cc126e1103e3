"""Full fine-tuning by the scripts: from converted weights, resumed, bit by bit the same, and what the model answers."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_patch.checkpoint import adapters, adapters_merge
from ascend_patch.run import BUNDLED
from tests.system_tests import bits, launcher, real_instructions, real_text, tuning
from tests.system_tests.example import COMMAND as PRETRAIN
from tests.system_tests.megatron_server import Server
from tests.system_tests.report import Compared
from tools.preprocess_data import main as preprocess

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("tuning")]  # they share weights

SAVED, LAST = 2, 4
STEPS = {"TRAIN_ITERS": LAST, "SAVE_INTERVAL": SAVED}
STARTED, RESUMED = "attempting to finetune with checkpoint in", f"at iteration {SAVED}"
RAW = {"MP_DATASET_TYPE": "raw"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mixtral with random weights, in Hugging Face's format."""
    return tuning.small_model(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module")
def weights(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuning.to_megatron(model, tmp_path_factory.mktemp("weights") / "megatron")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_instructions.write(
        tmp_path_factory.mktemp("records") / "alpaca.json", list(real_instructions.rows()[:64])
    )


@pytest.fixture(scope="module")
def undisturbed(weights: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tuning straight from json, that nobody stopped, has left its events and checkpoints."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = tuning.tune(folder, weights, records, **RAW, **STEPS).succeeded()
    assert STARTED in run.output and sorted(run.iterations) == [1, 2, 3, 4]
    return folder


def prepared(records: Path, tokenizer: Path, prefix: Path, *options: str) -> Path:
    common = ["--input", str(records), "--tokenizer-name-or-path", str(tokenizer), "--workers", "1"]
    common += ["--handler-name", "GeneralInstructionHandler", "--seq-length", str(tuning.LENGTH)]
    assert preprocess([*common, "--output-prefix", str(prefix), *options]) == 0
    return prefix


@pytest.mark.slow
def test_resumed_as_if_never_stopped(
    weights: Path, records: Path, undisturbed: Path, tmp_path: Path, compared: Compared
) -> None:
    """The second start is the same command; that the weights have been removed meanwhile does not matter to it."""
    parts, moved = tmp_path / "parts", tmp_path / "removed"
    tuning.tune(parts, weights, records, "--exit-interval", SAVED, **RAW, **STEPS).succeeded()
    tokenizer = {"TOKENIZER_MODEL": weights / "huggingface"}
    run = tuning.tune(parts, moved, records, **RAW, **STEPS, **tokenizer).succeeded()
    assert RESUMED in run.output and STARTED not in run.output and sorted(run.iterations) == [3, 4]
    compared.differing(
        "Full fine-tuning resumed and never stopped",
        "tensors and scalars that differ",
        bits.differing(undisturbed, parts, range(SAVED + 1, LAST + 1)),
    )


@pytest.mark.slow
def test_twice_the_same(weights: Path, records: Path, undisturbed: Path, tmp_path: Path, compared: Compared) -> None:
    tuning.tune(tmp_path, weights, records, **RAW, **STEPS).succeeded()
    compared.differing(
        "Full fine-tuning twice the same",
        "tensors and scalars that differ",
        bits.differing(undisturbed, tmp_path, range(1, LAST + 1)),
    )


@pytest.mark.slow
def test_another_seed_is_noticed(weights: Path, records: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The comparison can fail."""
    tuning.tune(tmp_path, weights, records, **RAW, **STEPS, SEED=4321).succeeded()
    assert bits.differing(undisturbed, tmp_path, range(1, LAST + 1))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"EP": 2}, {"TP": 2, "EP": 1}, {"PP": 2, "EP": 1}], ids=["ep2", "tp2", "pp2"])
def test_layouts_twice_and_resumed(
    weights: Path, records: Path, tmp_path: Path, compared: Compared, layout: dict
) -> None:
    """Packed data, two processes."""
    data = prepared(records, weights / "huggingface", tmp_path / "alpaca", "--pack")
    settings = STEPS | layout | {"GPUS_PER_NODE": 2}
    whole, again, parts = (tmp_path / name for name in ("whole", "again", "parts"))
    for folder in (whole, again):
        tuning.tune(folder, weights, data, **settings).succeeded()
    tuning.tune(parts, weights, data, "--exit-interval", SAVED, **settings).succeeded()
    tuning.tune(parts, weights, data, **settings).succeeded()
    name = " ".join(f"{size}{number}" for size, number in layout.items() if number > 1)
    what = "tensors and scalars that differ"
    compared.differing(
        f"Full fine-tuning twice, {name}, packed", what, bits.differing(whole, again, range(1, LAST + 1))
    )
    compared.differing(
        f"Full fine-tuning resumed, {name}, packed", what, bits.differing(whole, parts, range(SAVED + 1, LAST + 1))
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["apart", "together"])
@pytest.mark.parametrize("options", [(), ("--pack",)], ids=["padded", "packed"])
def test_prepared_data(weights: Path, records: Path, tmp_path: Path, options: tuple, how: str) -> None:
    data = prepared(records, weights / "huggingface", tmp_path / "alpaca", *options)
    run = tuning.tune(tmp_path / "out", weights, data, TRAIN_ITERS=2, CONVERSATIONS=how).succeeded()
    assert sorted(run.iterations) == [1, 2]


# ---- adapters


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"EP": 2}, {"TP": 2, "EP": 1}], ids=["ep2", "tp2"])
def test_adapters_by_their_script(
    model: Path, weights: Path, records: Path, tmp_path: Path, compared: Compared, layout: dict
) -> None:
    """Two processes, straight from json, all variables of LoRA: resumed as if never stopped, and what is saved is
    adapters, which merge into a model that has learned."""
    lora = {
        "LORA_R": 16,
        "LORA_ALPHA": 64,
        "LORA_DROPOUT": 0.1,
        "LORA_TARGETS": "linear_qkv linear_fc1 linear_fc2 router",
    }
    settings = {**RAW, **STEPS, **layout, **lora, "GPUS_PER_NODE": 2, "LR": "1e-2", "MIN_LR": "1e-3"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = tuning.tune(whole, weights, records, script=tuning.LORA, **settings).succeeded()
    assert sorted(run.iterations) == [1, 2, 3, 4]
    tuning.tune(parts, weights, records, "--exit-interval", SAVED, script=tuning.LORA, **settings).succeeded()
    run = tuning.tune(parts, weights, records, script=tuning.LORA, **settings).succeeded()
    assert RESUMED in run.output and sorted(run.iterations) == [3, 4]
    name = " ".join(f"{size}{number}" for size, number in layout.items() if number > 1)
    compared.differing(
        f"LoRA by its script resumed, {name}",
        "tensors and scalars that differ",
        bits.differing(whole, parts, range(SAVED + 1, LAST + 1)),
    )
    found = adapters.read(whole)
    assert (found.rank, found.alpha, found.dropout) == (16, 64, 0.1)
    assert set(found.targets) == set(lora["LORA_TARGETS"].split())
    adapters_merge.merge(found, model, tmp_path / "merged")
    assert tuning.loss_of_answers(tmp_path / "merged", records) < tuning.loss_of_answers(model, records) - 0.01


# ---- 26 arguments


def positional(out: Path, **changes: object) -> list[object]:
    """The arguments of examples/mistral/run_mcore_mistral.sh for a tuning of the small Mixtral."""
    arguments = {
        **{"ENV": "dsw", "MODEL_SIZE": "8x7B", "BATCH_SIZE": 1, "GLOBAL_BATCH_SIZE": 4, "LR": "1e-3", "MIN_LR": "1e-4"},
        **{"SEQ_LEN": tuning.LENGTH, "PAD_LEN": tuning.LENGTH, "PR": "bf16", "TP": 1, "PP": 1, "CP": 1, "EP": 1},
        **{"SP": "true", "DO": "true", "FL": "true", "SFT": "true", "AC": "false", "OPTIMIZER_OFFLOAD": "false"},
        **{"SAVE_INTERVAL": SAVED, "DATASET_PATH": "", "VALID_DATASET_PATH": "", "PRETRAIN_CHECKPOINT_PATH": "none"},
        **{"TRAIN_TOKENS_OR_ITERS": LAST, "WARMUP_TOKENS_OR_ITERS": 1, "OUTPUT_BASEPATH": out},
    }
    return list((arguments | changes).values())


@pytest.mark.slow
def test_26_arguments_tune_and_resume(weights: Path, records: Path, tmp_path: Path) -> None:
    """Straight from json, with other records to validate on, and recomputation."""
    valid = real_instructions.write(tmp_path / "valid.json", list(real_instructions.rows()[-8:]))
    paths = {"DATASET_PATH": records, "VALID_DATASET_PATH": valid, "PRETRAIN_CHECKPOINT_PATH": weights}
    arguments, settings = positional(tmp_path / "out", AC="full", **paths), RAW | {"EVAL_ITERS": 1}
    run = tuning.positional(arguments, "--exit-interval", SAVED, **settings).succeeded()
    assert STARTED in run.output and sorted(run.iterations) == [1, 2]
    run = tuning.positional(arguments, **settings).succeeded()
    assert RESUMED in run.output and sorted(run.iterations) == [3, 4]
    assert f"validation loss at iteration {LAST} on validation set" in run.output
    assert (tmp_path / "out" / "checkpoint" / "latest_checkpointed_iteration.txt").read_text() == str(LAST)


@pytest.mark.slow
def test_26_arguments_tune_on_packed_data(weights: Path, records: Path, tmp_path: Path) -> None:
    data = prepared(records, weights / "huggingface", tmp_path / "alpaca", "--pack")
    paths = {"DATASET_PATH": data, "VALID_DATASET_PATH": data, "PRETRAIN_CHECKPOINT_PATH": weights}
    run = tuning.positional(positional(tmp_path / "out", AC="sel", **paths), EVAL_ITERS=1).succeeded()
    assert sorted(run.iterations) == [1, 2, 3, 4]


@pytest.mark.slow
def test_26_arguments_pretrain(tmp_path: Path) -> None:
    """A Mistral from the beginning, for as many iterations as the tokens make, in fp16 without options."""
    text = real_text.flags()
    iteration = 4 * tuning.LENGTH
    off = {"SP": "false", "DO": "false", "FL": "false", "SFT": "false", "PR": "fp16", "MODEL_SIZE": "7B"}
    length = {"TRAIN_TOKENS_OR_ITERS": 3 * iteration + 5, "WARMUP_TOKENS_OR_ITERS": iteration}
    paths = {"DATASET_PATH": text["data_path"], "VALID_DATASET_PATH": text["data_path"]}
    settings = {"TOKENIZER_MODEL": text["tokenizer_model"], "DATA_CACHE_PATH": tmp_path / "cache", "EVAL_ITERS": 1}
    settings |= {"WINDOW_SIZE": "31,0"}
    run = tuning.positional(positional(tmp_path / "out", **off, **length, **paths), **settings).succeeded()
    assert "validation loss at iteration 3 on validation set" in run.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PR": "fp8"}, "but training in that format needs TransformerEngine and a GPU that has it"),
        ({"AC": "offload"}, "--cpu-offloading-num-layers 1 was given, but moving activations to host memory"),
        (
            {"OPTIMIZER_OFFLOAD": "static"},
            "--optimizer-cpu-offload was given, but the optimizer is on the host already",
        ),
        ({"OPTIMIZER_OFFLOAD": "auto"}, "--optimizer-cpu-offload was given, but"),
    ],
)
@pytest.mark.xdist_group("logits")  # that of the server
def test_what_cannot_be_had_is_refused(
    server: Server, weights: Path, records: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    """In one paragraph of the plugin's, which names the flag that the argument became."""
    paths = {"DATASET_PATH": records, "VALID_DATASET_PATH": records, "PRETRAIN_CHECKPOINT_PATH": weights}
    shown = tuning.positional(positional(tmp_path, **paths, **changes), **RAW, DRY_RUN=1).succeeded().output
    words = shlex.split(shown.splitlines()[-1])
    run = server.run(BUNDLED, words[words.index("ascend_patch.run") + 1 :]).failed()
    (paragraph,) = {text.partition("ascend_patch: ")[2] for text in run.paragraphs}
    assert message in paragraph


# ---- what it teaches


def test_the_model_learns_an_answer(model: Path, weights: Path, tmp_path: Path) -> None:
    """A model with random weights learns two real answers by heart, in 100 steps from json to Hugging Face's format."""
    taught = real_instructions.short()[:2]
    records = real_instructions.write(tmp_path / "taught.json", taught)
    settings = {"MICRO_BATCH": 4, "TRAIN_ITERS": 100, "LR": "5e-3", "MIN_LR": "5e-4", "SPLIT": "1,0,0"}
    tuning.tune(tmp_path / "out", weights, records, **RAW, **settings, SEQ_LENGTH=64).succeeded()
    tuned = tuning.to_hugging_face(tmp_path / "out", model, tmp_path / "tuned")
    assert tuning.loss_of_answers(tuned, records) < 0.1 < 9 < tuning.loss_of_answers(model, records)
    for row in taught:
        assert tuning.answer(model, row) != row["output"] == tuning.answer(tuned, row)


HELD_OUT, TAUGHT_SHARE = 64, 0.3
PROOF = {"HIDDEN_SIZE": 128, "FFN_HIDDEN_SIZE": 256, "NUM_QUERY_GROUPS": 2}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mixtral that has read a little Shakespeare, in Hugging Face's format."""
    folder, text = tmp_path_factory.mktemp("pretrained"), real_text.flags()
    settings = PROOF | {
        **{"DATA_PATH": text["data_path"], "TOKENIZER_MODEL": text["tokenizer_model"], "DATA_CACHE_PATH": folder},
        **{"CKPT_SAVE_DIR": folder / "megatron", "EP": 1, "SEQ_LENGTH": tuning.LENGTH, "MICRO_BATCH": 8},
        **{"GLOBAL_BATCH": 16, "TRAIN_ITERS": 100, "LR": "3e-3"},
    }
    launcher.run(PRETRAIN, tuning.variables(**settings), 900).succeeded()
    tokenizer = tuning.small_model(
        folder / "shape", hidden_size=128, intermediate_size=256, num_key_value_heads=2, head_dim=16
    )
    return tuning.to_hugging_face(folder / "megatron", tokenizer, folder / "hf")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_200_steps_on_real_instructions(
    pretrained: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Held-out answers become likelier, and two questions, which are a third of the training data, get their answers.

    The model is too small to learn 900 answers by heart: the others it sees two or three times each.
    """
    rows = list(real_instructions.rows())
    learned, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
    taught = [row for row in real_instructions.short() if row in learned][:2]
    files = {
        name: real_instructions.write(tmp_path / f"{name}.json", part)
        for name, part in (("all", learned), ("taught", taught), ("held_out", held_out))
    }
    weights = tuning.to_megatron(pretrained, tmp_path / "weights")
    settings = (
        PROOF
        | RAW
        | {
            **{"VALID_DATA_PATH": files["held_out"], "EVAL_ITERS": 4, "EVAL_INTERVAL": 50, "MICRO_BATCH": 8},
            **{"GLOBAL_BATCH": 16, "TRAIN_ITERS": 200, "SAVE_INTERVAL": 200, "LR": "3e-3", "MIN_LR": "3e-4"},
        }
    )
    blend = f"{1 - TAUGHT_SHARE} {files['all']} {TAUGHT_SHARE} {files['taught']}"
    tuning.tune(tmp_path / "out", weights, blend, timeout=1800, **settings).succeeded()
    tuned = tuning.to_hugging_face(tmp_path / "out", pretrained, tmp_path / "tuned")

    before, after = (tuning.loss_of_answers(each, files["held_out"]) for each in (pretrained, tuned))
    seen = bits.numbers(tmp_path / "out" / "events", "lm loss validation")
    said = [[tuning.answer(each, row) for row in taught] for each in (pretrained, tuned)]
    figures = {"held-out answers": (before, after), "validation": seen, "said": said}
    record_property("tuning", json.dumps(figures))
    print(figures)
    assert after < before - 1
    assert seen[200] < seen[50]
    assert said[1] == [row["output"] for row in taught]
    assert not {*said[0]} & {*said[1]}

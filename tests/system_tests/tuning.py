"""The scripts that tune, on a small model, as a user starts them; and what a tuned model answers."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.data.raw import RawConversations
from ascend_patch.data.templates import IGNORED
from tests.system_tests import hugging_face, launcher, real_instructions, real_text
from tests.system_tests.launcher import ROOT, Run, environment, single_process

TUNE = ROOT / "examples" / "mixtral" / "tune_mixtral_8x7b_full_ptd.sh"
LORA = ROOT / "examples" / "mixtral" / "tune_mixtral_8x7b_lora_ptd.sh"
POSITIONAL = ROOT / "examples" / "mistral" / "run_mcore_mistral.sh"
LENGTH = 128
SIZES = {
    "NUM_LAYERS": 2,
    "HIDDEN_SIZE": 64,
    "FFN_HIDDEN_SIZE": 96,
    "NUM_HEADS": 8,
    "NUM_QUERY_GROUPS": 4,
    "NUM_WORKERS": 0,
    "GPUS_PER_NODE": 1,
    "EVAL_ITERS": 0,
}
ONE_PROCESS = {"NNODES": 1, "TP": 1, "PP": 1, "EP": 1, "SEQ_LENGTH": LENGTH}


def small_model(folder: Path, **changes: object) -> Path:
    """A Mixtral (a Mistral with ``num_local_experts=None``) of these sizes, with random weights and the real tokenizer;
    returns ``folder``."""
    shape = hugging_face.MIXTRAL | {
        "hidden_size": SIZES["HIDDEN_SIZE"],
        "intermediate_size": SIZES["FFN_HIDDEN_SIZE"],
        "num_hidden_layers": SIZES["NUM_LAYERS"],
        "num_attention_heads": SIZES["NUM_HEADS"],
        "num_key_value_heads": SIZES["NUM_QUERY_GROUPS"],
        "head_dim": SIZES["HIDDEN_SIZE"] // SIZES["NUM_HEADS"],
        "vocab_size": real_text.VOCABULARY,
    }
    shape = {name: value for name, value in (shape | changes).items() if value is not None}
    hugging_face.untrained_model(**shape).to(torch.bfloat16).save_pretrained(folder)
    for file in real_instructions.tokenizer().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def to_megatron(model: Path, folder: Path) -> Path:
    """The weights of ``model`` as both scripts take them; returns ``folder``."""
    convert(Options(model, folder, make_vocab_size_divisible_by=1))
    return folder


def to_hugging_face(trained: Path, original: Path, folder: Path) -> Path:
    """The last checkpoint of a run, with what ``original`` has besides weights; returns ``folder``."""
    convert(Options(trained, folder, loads="megatron", saves="huggingface", hf_folder=original))
    return folder


def variables(**settings: object) -> dict[str, str]:
    """A user's environment with the settings of a script on top of :data:`SIZES`."""
    own = {
        "ASCEND_PATCH_DEVICE": "cpu",
        "ASCEND_PATCH_DETERMINISTIC": 1,
        "MASTER_PORT": single_process()["MASTER_PORT"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": 1,
    }
    return environment(**{name: str(value) for name, value in {**SIZES, **own, **settings}.items()})


def tune(
    folder: Path,
    weights: Path,
    data: object,
    *flags: object,
    script: Path = TUNE,
    timeout: float = 240,
    **settings: object,
) -> Run:
    """A script from ``weights``, with checkpoints and events in ``folder``; it goes on where it saved there."""
    own = ONE_PROCESS | {
        "TOKENIZER_MODEL": weights / "huggingface",
        "DATA_PATH": data,
        "DATA_CACHE_PATH": folder / "cache",
        "CKPT_LOAD_DIR": weights,
        "CKPT_SAVE_DIR": folder,
        "TENSORBOARD_DIR": folder / "events",
        "GLOBAL_BATCH": 4,
    }
    return launcher.run(["bash", str(script), *map(str, flags)], variables(**own | settings), timeout)


def positional(arguments: Sequence[object], *flags: object, **settings: object) -> Run:
    """:data:`POSITIONAL` with its 26 arguments."""
    return launcher.run(["bash", str(POSITIONAL), *map(str, (*arguments, *flags))], variables(**settings), 240)


def answer(model: Path, row: dict[str, str], tokens: int = 40) -> str:
    """What the model says to the question of ``row``, greedily, up to the end of its answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = tokenizer(f"[INST] {row['instruction']} [/INST]", return_tensors="pt").input_ids
    said = hugging_face.load(model).generate(asked, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(said[0, asked.shape[1] :], skip_special_tokens=True)


def loss_of_answers(model: Path, records: Path, length: int = LENGTH) -> float:
    """The mean loss of every token of the answers, by transformers, in the first ``length`` tokens of each record."""
    network, conversations = hugging_face.load(model), RawConversations(records, str(model))
    total, tokens = 0.0, 0
    for index in range(len(conversations)):
        (example,) = conversations[index]
        ids, labels = (torch.from_numpy(part[: length + 1]).long()[None] for part in (example.ids, example.labels))
        with torch.no_grad():
            scores = network(ids[:, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(scores, labels[0, 1:], ignore_index=IGNORED, reduction="sum").item()
        tokens += int((labels[0, 1:] != IGNORED).sum())
    return total / tokens

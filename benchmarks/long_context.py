"""``python -m benchmarks.long_context``: the script of 32768 tokens trains, at reduced width, on eight simulated NPUs.

examples/mixtral/pretrain_mixtral_8x7b_32k_ptd.sh with its own flags and sequence length, TP2 CP4 EP4 in place of TP8
CP4 EP4 over four nodes. Reduced are layers, width, heads and the vocabulary, which eight ranks of one machine could not
hold for so many tokens: its tokenizer is trained here, on the real text of ``make train``. The seconds are those of the
host, shared by all ranks, and say nothing about an NPU.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ascend_patch.runs.read import read
from ascend_patch.runs.run import LOSS
from ascend_sim import report
from benchmarks.contestants import single_process
from benchmarks.worker import ROOT
from tools.preprocess_data import load_tokenizer, write_dataset
from tools.train.corpus import built_in_documents

SCRIPT = ROOT / "examples" / "mixtral" / "pretrain_mixtral_8x7b_32k_ptd.sh"
LENGTH, RANKS, VOCABULARY = 32768, 8, 1024
LAYOUT = {"GPUS_PER_NODE": RANKS, "NNODES": 1, "TP": 2, "CP": 4, "EP": 4}
MODEL = {"NUM_LAYERS": 2, "HIDDEN_SIZE": 64, "FFN_HIDDEN_SIZE": 96, "NUM_HEADS": 4, "NUM_QUERY_GROUPS": 2}
TRAINING = {"GLOBAL_BATCH": 1, "LR": "1e-3", "MIN_LR": "1e-4", "EVAL_ITERS": 0, "SPLIT": "1,0,0", "NUM_WORKERS": 0}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.long_context", description="The script of 32768 tokens.")
    parser.add_argument("--tokens", type=int, default=LENGTH, help=f"sequence length (default: {LENGTH})")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--type", choices=("p2p", "a2a", "allgather"), default="p2p", help="CP_COMM_TYPE")
    folder = ROOT / "runs" / "long_context"
    parser.add_argument("--out", type=Path, default=folder, help="folder for data, log, report and checkpoint")
    options = parser.parse_args()
    log, counted = train(options.out, options.tokens, options.iterations, options.type)
    print(table(log, counted, options.tokens, options.type), flush=True)


def train(folder: Path, tokens: int, iterations: int, kind: str) -> tuple[Path, Path]:
    """Run the script; its log and the simulator's report."""
    folder.mkdir(parents=True, exist_ok=True)
    log, counted, save = folder / "train.log", folder / "report.json", folder / "checkpoint"
    if save.exists():
        sys.exit(f"benchmarks: {save} would be resumed. Remove it, or name another folder with --out.")
    own = {
        "DATA_PATH": folder / "text",
        "TOKENIZER_MODEL": folder / "tokenizer",
        "CKPT_SAVE_DIR": save,
        "SEQ_LENGTH": tokens,
        "TRAIN_ITERS": iterations,
        "CP_COMM_TYPE": kind,
        "MASTER_PORT": single_process()["MASTER_PORT"],
        "OMP_NUM_THREADS": 1,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    prepare(folder / "text", folder / "tokenizer")
    variables = {name: str(value) for name, value in {**LAYOUT, **MODEL, **TRAINING, **own}.items()}
    command = [sys.executable, "-m", "ascend_sim", "run", "--report", str(counted), "--", "bash", str(SCRIPT)]
    with log.open("w") as stream:
        ended = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **variables}, stdout=stream, stderr=subprocess.STDOUT
        )
    if ended.returncode != 0:
        sys.exit(f"benchmarks: the script ended with {ended.returncode}; see {log}")
    return log, counted


def prepare(prefix: Path, folder: Path) -> None:
    """A tokenizer of few tokens in ``folder``, and the real text of ``make train`` in them."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    documents = list(built_in_documents(ROOT / "data"))
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        documents, BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    write_dataset(documents, load_tokenizer(folder), prefix)


def table(log: Path, counted: Path, tokens: int, kind: str) -> str:
    """Loss and seconds of each iteration, and the most memory of a device."""
    run = read(log)
    layout = " ".join(f"{name}{LAYOUT[name]}" for name in ("TP", "CP", "EP"))
    layers, width, heads, groups = (MODEL[n] for n in ("NUM_LAYERS", "HIDDEN_SIZE", "NUM_HEADS", "NUM_QUERY_GROUPS"))
    model = (
        f"{layers} layers of width {width}, {heads} heads in {groups} groups, 8 experts, vocabulary of {VOCABULARY:,}"
    )
    lines = [
        f"{SCRIPT.name}, simulated device: {tokens:,} tokens, {RANKS} ranks, {layout}, {kind}, bf16",
        f"  {model}",
        f"  {'iteration':<12}{'lm loss':>10}{'host seconds':>15}",
    ]
    seconds = {sample.last: f"{sample.value:.1f}" for sample in run.seconds}
    for sample in run.samples[LOSS]:
        lines.append(f"  {sample.last:<12}{sample.value:>10.4f}{seconds.get(sample.last, '-'):>15}")
    found = report.read(counted)
    peak = max(report.last_step(found, rank)["peak_memory_bytes"] for rank in range(RANKS))
    return "\n".join([*lines, f"  the most memory of a device: {peak / 2**20:,.0f} MiB"])


if __name__ == "__main__":
    main()

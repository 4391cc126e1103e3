"""``python -m tools.tiny_model FOLDER``: a small Mixtral with random weights, as a folder of Hugging Face's.

It stands in for a downloaded model where the way is to be tried and not the model: it has the sizes of
examples/mixtral/pretrain_mixtral_tiny.sh and Mixtral 8x7B's own tokenizer, which comes from a Python package.
"""

import argparse
import shutil
import sys
from pathlib import Path

from tools.preprocess_data import DataError
from tools.train.corpus import prepare_tokenizer
from tools.train.settings import ROOT

SIZES = {
    "vocab_size": 32000,
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
}


def write_model(folder: Path, tokenizer: Path, seed: int = 1234, **sizes: int) -> None:
    """Write config, weights in bfloat16 and tokenizer into ``folder``, which must not exist.

    Args:
        tokenizer: a folder whose files are copied.
        sizes: of transformers' ``MixtralConfig``, instead of :data:`SIZES`.

    Raises:
        DataError: the folder exists.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already. It is left as it is: remove it, or name another folder.")
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    model = MixtralForCausalLM(MixtralConfig(**{**SIZES, **sizes})).to(torch.bfloat16)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(tokenizer, unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="tools.tiny_model", description="A small Mixtral with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args(arguments)
    try:
        write_model(options.folder, prepare_tokenizer(ROOT / "data"), options.seed)
    except DataError as error:
        sys.exit(f"tiny_model: {error}")
    print(f"{options.folder}: a Mixtral with random weights and the tokenizer of Mixtral 8x7B")


if __name__ == "__main__":
    main()

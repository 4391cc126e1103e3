"""Adapters (LoRA) that Megatron-LM trained, in PEFT's format and back, and merged into the weights of their base.

  Megatron-LM -> PEFT: a folder for peft.PeftModel.from_pretrained
    python tools/checkpoint/adapter.py export --load-dir ckpt/Mixtral-8x7B-lora --save-dir adapters/Mixtral-8x7B

  PEFT -> Megatron-LM: a checkpoint for --lora-load
    python tools/checkpoint/adapter.py import --load-dir adapters/Mixtral-8x7B --model model_from_hf/Mixtral-8x7B \\
        --save-dir ckpt/Mixtral-8x7B-imported

  Merge either kind into the base: Hugging Face's folder, or weights that tools/checkpoint/util.py made
    python tools/checkpoint/adapter.py merge --load-dir ckpt/Mixtral-8x7B-lora --base model_from_hf/Mixtral-8x7B \\
        --save-dir model_from_hf/Mixtral-8x7B-merged
"""

import argparse
import json
import sys
from pathlib import Path

# torch takes seconds to import: only once the command line is known to be good.
from ascend_patch.checkpoint.errors import CheckpointError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if it failed.

    Raises:
        SystemExit: with 2, of a wrong command line.
    """
    options = make_parser().parse_args(arguments)
    try:
        {"export": export, "import": import_, "merge": merge}[options.command](options)
    except CheckpointError as error:
        print(f"adapter.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"adapter.py: {where}{error.strerror}.", file=sys.stderr)
        return 1
    print(f"{options.save_dir} is ready.", file=sys.stderr)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adapter.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, text in (
        ("export", "Megatron-LM's checkpoint of adapters", "to PEFT's format"),
        ("import", "PEFT's folder", "from PEFT's format"),
        ("merge", "adapters of either kind", "into the weights of the base"),
    ):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("--load-dir", type=Path, metavar="DIR", required=True, help=source)
        command.add_argument("--save-dir", type=Path, metavar="DIR", required=True, help="must not be there yet")
        if name != "import":
            command.add_argument("--ckpt-step", type=int, metavar="N", help="iteration; default: the latest")
        if name == "export":
            command.add_argument("--model", metavar="NAME", help="name or folder of the base, for adapter_config.json")
        if name == "import":
            command.add_argument(
                "--model", type=Path, metavar="DIR", required=True, help="folder with the config.json of the base"
            )
        if name == "merge":
            command.add_argument("--base", type=Path, metavar="DIR", required=True, help="the weights to add to")
    return parser


def export(options: argparse.Namespace) -> None:
    """Megatron-LM's adapters to PEFT's."""
    from ascend_patch.checkpoint import adapters, adapters_peft

    adapters_peft.write(adapters.read(options.load_dir, options.ckpt_step), options.save_dir, options.model)


def import_(options: argparse.Namespace) -> None:
    """PEFT's adapters to Megatron-LM's; says which flags they need."""
    from ascend_patch.checkpoint import adapters, adapters_peft
    from ascend_patch.checkpoint.shape import ModelShape

    file = options.model / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}): is it truncated?") from error
    found = adapters_peft.read(options.load_dir, ModelShape.from_hf(config, str(file)))
    adapters.write(found, options.save_dir)
    print(
        f"Train them with --lora-load {options.save_dir} --lora-r {found.rank} --lora-alpha {found.alpha} "
        f"--lora-target-modules {' '.join(found.targets)}",
        file=sys.stderr,
    )


def merge(options: argparse.Namespace) -> None:
    """Adapters and their base to a whole model."""
    from ascend_patch.checkpoint import adapters, adapters_merge, adapters_peft

    if (options.load_dir / adapters_peft.CONFIG).is_file():
        found = adapters_peft.read(options.load_dir, adapters_merge.open_base(options.base).shape)
    else:
        found = adapters.read(options.load_dir, options.ckpt_step)
    adapters_merge.merge(found, options.base, options.save_dir)


if __name__ == "__main__":
    sys.exit(main())

"""Turn text and instructions into Megatron's indexed datasets: token ids in .bin, where documents begin in .idx.

    python tools/preprocess_data.py --input 'corpus/*.jsonl.zst' --output-prefix data/my \\
        --tokenizer-type PretrainedFromHF --tokenizer-name-or-path FOLDER --append-eod --workers 16

reads one JSON object a line, each with the document under "text", and writes data/my_text_document.bin and .idx, byte
for byte what upstream's tools/preprocess_data.py writes. ``--data-path data/my_text_document`` is then what
pretrain_gpt.py wants. The split into training, validation and test documents is not made here but by
upstream's ``--split``.

Input files end in .jsonl, .json (an array, or one object after the other), .parquet or .txt (``--txt-split`` says what
a document is: a line), each also with .gz or .zst behind. ``-`` is standard input.

``--handler-name GeneralInstructionHandler`` reads instruction, input and output, SharegptStyleInstructionHandler and
OpenAIStyleInstructionHandler conversations. They write token ids and labels for ``--is-instruction-dataset`` and
``--sft``; with ``--pack`` a document is as many conversations as fit into ``--seq-length``. ``preprocess_data.py
inspect PREFIX`` shows what was written.

Nothing is seen half-written: an interrupted run keeps what it has in PREFIX.unfinished, and the same command goes on
from there.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ascend_patch import __version__
from ascend_patch.commands.options import positive
from ascend_patch.data import inspect
from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import DEFAULT_HANDLER, HANDLERS, HandlerOptions, create_handler
from ascend_patch.data.lines import TxtSplit
from ascend_patch.data.preprocess import Summary, preprocess, read_documents, unfinished_folder, write_dataset
from ascend_patch.data.sources import Format, find_sources
from ascend_patch.data.templates import TEMPLATES
from ascend_patch.data.tokenize import HUGGING_FACE, TOKENIZER_TYPES, fingerprint, load_tokenizer
from ascend_patch.data.writer import Dataset

__all__ = ["DataError", "Dataset", "load_tokenizer", "main", "read_documents", "write_dataset"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring. Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["inspect"]:
        return _inspect(arguments[1:])
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="preprocess_data: %(message)s")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the worker processes are the parallelism
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _report(_run(options))
    except DataError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = unfinished_folder(options.output_prefix)
        end = f"The same command goes on from {kept}." if kept.is_dir() else "It had done too little to keep."
        print(f"\npreprocess_data: interrupted. {end}", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _run(options: argparse.Namespace) -> Summary:
    sources = find_sources(options.input, options.input_format)
    tokenizer = load_tokenizer(options.tokenizer, options.tokenizer_type, not options.tokenizer_not_use_fast)
    handler_options = HandlerOptions(
        json_keys=tuple(options.json_keys),
        append_eod=options.append_eod,
        seq_length=options.seq_length,
        pack=options.pack,
        pad_to_multiple_of=options.pad_to_multiple_of,
        prompt_template=options.prompt_template,
    )
    handler = create_handler(options.handler_name, tokenizer, handler_options)
    settings = {
        "ascend_patch": __version__,
        "--handler-name": options.handler_name,
        "--tokenizer-type": options.tokenizer_type,
        "the tokenizer's files": fingerprint(options.tokenizer),
        **{f"--{name.replace('_', '-')}": value for name, value in vars(handler_options).items()},
    }
    return preprocess(
        sources,
        handler,
        options.output_prefix,
        settings,
        workers=options.workers,
        split=options.txt_split,
        longest=options.max_record_mib << 20,
        skip_bad=options.on_error == "skip",
        log_interval=options.log_interval,
        restart=options.restart,
    )


def _inspect(arguments: Sequence[str]) -> int:
    try:
        inspect.run(arguments)
    except DataError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return 1
    return 0


def _report(summary: Summary) -> None:
    for dataset in summary.datasets:
        print(f"{dataset.prefix}: {dataset.documents} documents, {dataset.tokens} tokens")
    if summary.skipped:
        print(f"{summary.skipped} of {summary.records} records left out: they could not be used")
    for note, count in summary.notes.items():
        print(f"{count} {note}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preprocess_data",
        description="Turn text and instructions into Megatron's .bin/.idx files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("input")
    group.add_argument("--input", nargs="+", required=True, help="files, patterns in quotes, or - for standard input")
    group.add_argument("--input-format", type=Format, choices=list(Format), help="if the names do not tell it")
    group.add_argument("--json-keys", nargs="+", default=["text"], help="keys of the text; one dataset for each")
    group.add_argument(
        "--txt-split", type=TxtSplit, choices=list(TxtSplit), default=TxtSplit.LINE, help="a document of a .txt file"
    )
    group.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="a record that cannot be used")
    group.add_argument("--max-record-mib", type=positive, default=256, help="a longer record cannot be used")

    group = parser.add_argument_group("tokens")
    group.add_argument(
        "--tokenizer-type", choices=TOKENIZER_TYPES, default=HUGGING_FACE[0], help="upstream's names too"
    )
    group.add_argument(
        "--tokenizer-name-or-path", "--tokenizer-model", dest="tokenizer", type=Path, required=True, help="local"
    )
    group.add_argument(
        "--tokenizer-not-use-fast", "--tokenizer-hf-no-use-fast", action="store_true", help="where there are both"
    )
    group.add_argument("--handler-name", choices=tuple(HANDLERS), default=DEFAULT_HANDLER, help="what a record is")
    group.add_argument("--append-eod", action="store_true", help="end each document with its token")

    group = parser.add_argument_group("instructions")
    group.add_argument("--seq-length", type=positive, help="of the samples; longer conversations are cut")
    group.add_argument("--pack", action="store_true", help="several conversations a document, as --seq-length allows")
    group.add_argument(
        "--pad-to-multiple-of",
        type=positive,
        default=1,
        help="room for training to pad each packed conversation: twice --context-parallel-size",
    )
    group.add_argument(
        "--prompt-template",
        choices=tuple(TEMPLATES),
        default="mistral",
        help="Mistral's and Mixtral's, or the tokenizer's",
    )

    group = parser.add_argument_group("output")
    group.add_argument("--output-prefix", type=Path, required=True, help="up to _KEY_document.bin")
    group.add_argument("--restart", action="store_true", help="throw an interrupted run of other settings away")

    group = parser.add_argument_group("work")
    group.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)), help="processes")
    group.add_argument("--log-interval", type=positive, default=1000, help="documents a line, without a terminal")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""A conversation in the terminal: ``torchrun … -m ascend_patch.run tasks/inference/inference_mixtral.py FLAGS``.

For Instruct models: the tokenizer's chat template turns the messages into a prompt, and the answer appears as it is
generated. ``/new`` begins another conversation, ``/quit`` or the end of input ends it. With standard input from a
file each line is a message.
"""

import argparse
import sys

import torch

from ascend_patch.generation import ranks
from ascend_patch.generation.chat import Chat, Terminal
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.model import initialize, load_template
from ascend_patch.generation.options import (
    add_engine_arguments,
    add_sampling_arguments,
    add_template_argument,
    build_engine,
    sampling_options,
)


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The script's own arguments, beside Megatron-LM's."""
    parser.add_argument_group("conversation").add_argument("--system", help="what comes before the first message")
    add_template_argument(parser)
    add_sampling_arguments(parser)
    return add_engine_arguments(parser)


def main() -> None:
    """See the module's docstring."""
    args = initialize(arguments)
    engine = build_engine(args)
    terminal = Terminal(sys.stdin, sys.stdout) if ranks.first() else None
    chat = Chat(engine, load_template(args), sampling_options(args), args.system)
    while (message := ranks.broadcast(terminal.read() if terminal else None)) is not None:
        if message == "/new":
            chat.clear()
            continue
        try:
            for text in chat.answer(message):
                if terminal:
                    terminal.show(text)
        except GenerationError as error:
            if terminal:
                terminal.show(f"{error} (/new begins another conversation.)")
        if terminal:
            terminal.show("\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

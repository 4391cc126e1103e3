"""Evaluate: ``torchrun … -m ascend_patch.run tasks/evaluation/evaluate.py MEGATRON'S FLAGS --task NAME``.

Tables go to standard output, everything as JSON to ``--output``. Run again after an interruption, it goes on.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from ascend_patch import manifest
from ascend_patch.evaluation.errors import check_lm_eval
from ascend_patch.evaluation.identity import identity
from ascend_patch.evaluation.workers import Workers
from ascend_patch.generation.base_engine import BaseEngine
from ascend_patch.generation.engines import create_engine
from ascend_patch.generation.model import initialize, load_model, load_tokenizer, model_name
from ascend_patch.generation.options import add_engine_arguments
from ascend_patch.generation.scoring import Scorer


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The script's own arguments, beside Megatron-LM's."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--task", required=True, help="mmlu, boolq, ceval, mmlu_1000, or any task of lm-eval's, by name or file"
    )
    group.add_argument("--task-data-path", type=Path, help="the data set's own files; lm-eval downloads others")
    group.add_argument("--output", type=Path, metavar="FILE", help="evaluation/MODEL/TASK.json by default")
    group.add_argument("--limit", type=int, help="only so many questions of each subject, to try it")
    group.add_argument("--num-fewshot", type=int, help="examples before each question, if not as published")
    return add_engine_arguments(parser)


def main() -> None:
    """See the module's docstring."""
    check_lm_eval()
    args = initialize(arguments)
    output = args.output or Path("evaluation", model_name(args), f"{Path(args.task).stem}.json")
    model, tokenizer = load_model(args, args.converted_dir), load_tokenizer(args)
    sizes: dict[str, Any] = {"batch_size": args.max_batch_size, "max_length": args.seq_length}
    scorer = Scorer(model, len(tokenizer), **sizes)

    def build_engine() -> BaseEngine:
        return create_engine(model, tokenizer, max_sequence_length=args.seq_length, max_batch_size=args.max_batch_size)

    with Workers(scorer, build_engine) as workers:
        if torch.distributed.get_rank() == 0:
            from ascend_patch.evaluation.evaluate import Options, evaluate  # lm-eval takes long to import

            options = Options(args.task, args.task_data_path, output, args.limit, args.num_fewshot)
            device = manifest.contributed("ascend_patch")["device"].split()[0]
            print(f"\n{evaluate(options, workers, tokenizer, identity(args), device)}\n\n{output}", flush=True)
        else:
            workers.follow()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

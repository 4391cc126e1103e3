"""Evaluations by a Megatron job in any layout.

Run as a script, this is the job: ``evaluation.py REQUEST FOLDER ARGUMENTS…`` does what the JSON file ``REQUEST`` says,
and rank 0 writes ``FOLDER/TASK.json`` for each of its ``tasks`` (name, and data or null), and ``FOLDER/texts.json``
with the log-likelihoods of its ``texts``, the completions of its ``prompts``, and how many requests were computed.
With ``die_after`` it kills itself when so many results are in the journal.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.system_tests.launcher import Run
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import tiny

LENGTH = 256
BATCH = 4


def evaluate(server: Server, folder: Path, flags: dict, processes: int = 1, **request: Any) -> Run:
    """Run the job; its results are in ``folder``.

    Args:
        flags: for :func:`mixtral.tiny`.
        request: see the module's docstring.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "request"
    file.write_text(json.dumps(request))
    return server.run(Path(__file__), [file, folder, *tiny(**flags)], processes)


def write_questions(root: Path) -> dict[str, Path]:
    """Small data sets in the published formats; the folder of each."""
    mmlu, ceval, boolq = (root / name for name in ("mmlu", "ceval", "boolq"))
    for folder in (mmlu / "test", mmlu / "dev", ceval / "val", ceval / "dev", boolq):
        folder.mkdir(parents=True)
    for subject in ("anatomy", "world_religions"):
        for split, count in (("test", 7), ("dev", 5)):
            rows = [
                f'"What is {i} of {subject}, then?",{i},"{i + 1}, or",{i * i},none,{"ABCD"[i % 4]}'
                for i in range(count)
            ]
            (mmlu / split / f"{subject}_{split}.csv").write_text("\n".join(rows) + "\n")
    for split, count in (("val", 4), ("dev", 5)):
        rows = [f"{i},下列第{i}项正确的是,甲{i},乙,丙,丁,{'ABCD'[i % 4]},因为" for i in range(count)]
        (ceval / split / f"law_{split}.csv").write_text("\n".join(["id,question,A,B,C,D,answer,explanation", *rows]))
    lines = [
        {"question": f"is {i} even", "passage": f"The number {i} is what it is.", "answer": i % 2 == 0}
        for i in range(6)
    ]
    (boolq / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"mmlu": mmlu, "ceval": ceval, "boolq": boolq}


def main() -> None:
    """The job; see the module's docstring."""
    request, folder = json.loads(Path(sys.argv.pop(1)).read_text()), Path(sys.argv.pop(1))

    from ascend_patch.evaluation.identity import identity
    from ascend_patch.evaluation.workers import Workers
    from ascend_patch.generation import model
    from ascend_patch.generation.engine import Engine
    from ascend_patch.generation.scoring import Scorer

    class Counted(Workers):
        """Knows how much it had to compute."""

        computed = 0

        def score(self, pairs: Any, on_scores: Any) -> None:
            self.computed += len(pairs)
            super().score(pairs, on_scores)

    args = model.initialize()
    loaded, tokenizer = model.load_model(args), model.load_tokenizer(args)

    def build_engine() -> Engine:
        return Engine(loaded, tokenizer, max_sequence_length=LENGTH, max_batch_size=BATCH)

    with Counted(Scorer(loaded, len(tokenizer), max_length=LENGTH, batch_size=BATCH), build_engine) as workers:
        if torch.distributed.get_rank() == 0:
            _evaluate(request, folder, workers, tokenizer, identity(args))
        else:
            workers.follow()


def _evaluate(request: Mapping[str, Any], folder: Path, workers: Any, tokenizer: Any, identity: dict) -> None:
    from lm_eval.api.instance import Instance

    from ascend_patch.evaluation.evaluate import Options, evaluate
    from ascend_patch.evaluation.journal import Journal
    from ascend_patch.evaluation.lm import MegatronLM

    if limit := request.get("die_after"):
        add = Journal.add

        def add_and_die(journal: Journal, key: str, result: Any) -> None:
            add(journal, key, result)
            if len(journal.results) == limit:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.add = add_and_die
    for task, data in request.get("tasks", {}).items():
        options = Options(task, data and Path(data), folder / f"{Path(task).stem}.json")
        evaluate(options, workers, tokenizer, identity, "cpu")
    with Journal(folder / "texts.journal", identity) as journal:
        lm = MegatronLM(workers, tokenizer, journal)
        texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in request.get("texts", [])]
        prompts = [Instance("generate_until", {}, tuple(prompt), 0) for prompt in request.get("prompts", [])]
        results = {"texts": lm.loglikelihood_rolling(texts), "prompts": lm.generate_until(prompts)}
    (folder / "texts.json").write_text(json.dumps(results | {"computed": workers.computed}))


if __name__ == "__main__":
    main()

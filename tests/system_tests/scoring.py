"""Log-likelihoods by a Megatron job in any layout.

Run as a script, this is the job: ``scoring.py REQUEST FOLDER ARGUMENTS…`` builds the scorer with the JSON file
``REQUEST``'s ``scorer`` options, scores its ``pairs``, and each rank writes what it got to ``FOLDER/RANK.json``.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import tiny


def score(
    server: Server, pairs: Sequence[tuple[list[int], list[int]]], flags: dict, processes: int = 1, **scorer: object
) -> list[tuple[float, bool]]:
    """Run the job; every rank must have the same scores.

    Args:
        pairs: token ids of contexts and continuations.
        flags: for :func:`mixtral.tiny`.
        scorer: options of ``Scorer``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = folder / "request"
        request.write_text(json.dumps({"pairs": pairs, "scorer": {"max_length": 128} | scorer}))
        server.run(Path(__file__), [request, folder, *tiny(**flags)], processes).succeeded()
        first, *others = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    for other in others:
        assert other == first
    return [(logprob, greedy) for logprob, greedy in first]


def transformers_score(
    model: torch.nn.Module, context: list[int], continuation: list[int], max_length: int = 128
) -> tuple[float, bool]:
    """What transformers gives one pair, alone."""
    tokens = torch.tensor([*context, *continuation])[-max_length - 1 :]
    with torch.no_grad():
        logprobs = model(tokens[None, :-1]).logits[0, -len(continuation) :].log_softmax(-1)
    wanted = tokens[-len(continuation) :]
    return float(logprobs.gather(1, wanted[:, None]).sum()), bool((logprobs.argmax(-1) == wanted).all())


def main() -> None:
    """The job; see the module's docstring."""
    request, folder = json.loads(Path(sys.argv.pop(1)).read_text()), Path(sys.argv.pop(1))

    from ascend_patch.generation import model
    from ascend_patch.generation.scoring import Scorer

    args = model.initialize()
    scorer = Scorer(model.load_model(args), len(model.load_tokenizer(args)), **request["scorer"])
    seen: dict[int, tuple] = {}
    scores = scorer.score(request["pairs"], seen.update)
    assert [seen[place] for place in range(len(scores))] == scores
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()

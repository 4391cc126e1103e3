"""Generation by a Megatron job in any layout.

Run as a script, this is the job: ``generation.py REQUEST FOLDER ARGUMENTS…`` builds the engine with the JSON file
``REQUEST``'s ``engine`` options, generates each of its ``batches`` (``prompts`` with ``options``, by beam search those
with ``beams``), and each rank writes what it got, and how many tokens it has computed, to ``FOLDER/RANK.json``.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.system_tests import hugging_face
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import tiny

SHAPE = hugging_face.MIXTRAL | {"max_position_embeddings": 256, "num_hidden_layers": 2}


def flags(shape: dict, checkpoint: Path, tokenizer: Path, **changes: object) -> dict:
    """The flags of a model of ``shape`` that generates, for :func:`mixtral.tiny`."""
    return hugging_face.megatron_arguments(shape) | {
        "load": checkpoint,
        "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": tokenizer,
        "vocab_size": False,
        "mock_data": False,
        **changes,
    }


def generate(
    server: Server, batches: Sequence[dict], flags: dict, processes: int = 1, **options: Any
) -> list[list[dict]]:
    """Run the job; every rank must have the same tokens.

    Args:
        batches: each with ``prompts``, lists of token ids, ``options`` of ``SamplingOptions``, and for a search
            ``beams``, those of ``BeamOptions``.
        flags: for :func:`mixtral.tiny`.
        options: see :func:`generate_counting`.

    Returns:
        For each batch the requests, as dictionaries.
    """
    return generate_counting(server, batches, flags, processes, **options)[0]


def generate_counting(
    server: Server,
    batches: Sequence[dict],
    flags: dict,
    processes: int = 1,
    long_way: bool = False,
    static: bool = False,
    **engine: object,
) -> tuple[list[list[dict]], list[list[int]]]:
    """See :func:`generate`; also returns for each rank how many tokens went through its model for each batch.

    Args:
        long_way: decode with upstream's whole layers.
        static: generate as a release does whose dynamic engine cannot serve.
        engine: options of ``Engine``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = folder / "request"
        options = {"max_sequence_length": 128} | engine
        request.write_text(json.dumps({"batches": batches, "long_way": long_way, "static": static, "engine": options}))
        server.run(Path(__file__), [request, folder, *tiny(**flags)], processes).succeeded()
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    for other in found:
        assert other["results"] == found[0]["results"]
    return found[0]["results"], [one["computed"] for one in found]


def transformers_greedy(model: torch.nn.Module, prompt: list[int], tokens: int, **options: object) -> list[int]:
    """What transformers generates for one prompt, whatever the end-of-sequence token."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # or it takes what looks like padding for padding
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return found[0, len(prompt) :].tolist()


def check_same(model: torch.nn.Module, prompt: list[int], found: list[int], expected: list[int]) -> None:
    """``found`` is ``expected``, up to a place where transformers' own two best logits are as good as equal."""
    if found == expected:
        return
    place = next(i for i in range(len(expected)) if i >= len(found) or found[i] != expected[i])
    with torch.no_grad():
        logits = model(torch.tensor([prompt + expected[:place]])).logits[0, -1]
    gap = float(logits[expected[place]] - logits[found[place]]) if place < len(found) else float("inf")
    report = f"token {place} is {found[place : place + 1]}, not {expected[place]}; their logits differ by {gap:.2e}"
    print(report)
    assert 0 <= gap < 1e-4, report


def main() -> None:
    """The job; see the module's docstring."""
    request, folder = json.loads(Path(sys.argv.pop(1)).read_text()), Path(sys.argv.pop(1))

    from ascend_patch.generation import engine as engine_module
    from ascend_patch.generation import engines, model
    from ascend_patch.generation.beam_engine import BeamEngine
    from ascend_patch.generation.beam_search import BeamOptions
    from ascend_patch.generation.decoding import DecodingLayer
    from ascend_patch.generation.sampling import SamplingOptions

    args = model.initialize()
    if request["long_way"]:
        engine_module.shorten = lambda model: None
    loaded = (model.load_model(args), model.load_tokenizer(args))
    if request["static"]:
        engines.has_dynamic_engine = lambda version: False
        engine = engines.create_engine(*loaded, **request["engine"])
    else:
        engine = engine_module.Engine(*loaded, **request["engine"])
    short = [isinstance(layer, DecodingLayer) for layer in loaded[0].decoder.layers]
    adapted = getattr(args, "lora_target_modules", None)
    whole = request["long_way"] or request["static"] or args.sequence_parallel or adapted
    if any(short) if whole else not all(short):
        raise RuntimeError(f"the layers that take the short way: {short}")
    packed = [layer._packed_qkv is not None for layer in loaded[0].decoder.layers if isinstance(layer, DecodingLayer)]
    on_host = next(loaded[0].parameters()).device.type == "cpu"
    packs = on_host and args.bf16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if any(packed) != (any(short) and packs):
        raise RuntimeError(f"the layers with packed weights: {packed}")
    results = []
    computed: list[int] = []
    loaded[0].register_forward_pre_hook(lambda _, inputs: computed.append(computed.pop() + inputs[0].numel()))
    for batch in request["batches"]:
        computed.append(0)
        if "beams" in batch:
            engine = BeamEngine(*loaded, BeamOptions(**batch["beams"]), **request["engine"])
        results.append(
            [
                {
                    "tokens": one.tokens,
                    "text": one.text,
                    "finish": one.finish,
                    "choices": [asdict(choice) for choice in one.choices],
                }
                for one in engine.generate(batch["prompts"], SamplingOptions(**batch["options"]))
            ]
        )
        if engine.busy:
            raise RuntimeError("the engine goes on with requests that have ended")
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps({"results": results, "computed": computed}))


if __name__ == "__main__":
    main()

"""Hugging Face to Megatron and back is bit-identical, whatever the layout, the format, the names and the dtype."""

import json
import random
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.shape import ModelShape
from tests.system_tests import hugging_face
from tests.system_tests.checkpoints import check_identical, layouts, tensors

LAYOUTS = layouts()
DENSE = {name: {**options, "expert": 1} for name, options in LAYOUTS.items() if options["expert"] == 2}
BUILDS = [Build(impl, grouped) for impl in ("transformer_engine", "local") for grouped in (True, False)]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = hugging_face.random_model(**hugging_face.MIXTRAL | {"num_hidden_layers": 6})
    return hugging_face.save(model, tmp_path_factory.mktemp("mixtral"), torch.bfloat16)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = hugging_face.random_model(**hugging_face.MISTRAL_V01 | {"num_hidden_layers": 6})
    return hugging_face.save(model, tmp_path_factory.mktemp("mistral"), torch.float16)


def there_and_back(original: Path, folder: Path, number: int, **layout: object) -> None:
    """To Megatron in a layout, from there to torch_dist or torch, from there back."""
    formats = ["torch_dist", "torch"] if layout.get("expert_tensor", 0) <= layout["tensor"] else ["torch_dist"]
    options = {"build": BUILDS[number % len(BUILDS)], **layout}
    source, loads = original, "huggingface"
    for ckpt_format in formats[:: 1 - number % 2 * 2]:
        target = folder / ckpt_format
        convert(Options(source, target, loads=loads, ckpt_format=ckpt_format, **options))
        source, loads = target, "megatron"
    convert(Options(source, folder / "back", loads="megatron", saves="huggingface"))
    check_identical(folder / "back", original)


@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=list(LAYOUTS))
def test_mixtral(mixtral: Path, tmp_path: Path, number: int) -> None:
    there_and_back(mixtral, tmp_path, number, **list(LAYOUTS.values())[number])


@pytest.mark.parametrize("number", range(len(DENSE)), ids=list(DENSE))
def test_mistral(mistral: Path, tmp_path: Path, number: int) -> None:
    there_and_back(mistral, tmp_path, number, **list(DENSE.values())[number])


def test_random_layouts(mixtral: Path, tmp_path: Path) -> None:
    """From one layout to the next, of all that there are."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    source, loads, shape = mixtral, "huggingface", ModelShape.from_hf(json.loads((mixtral / "config.json").read_text()))
    for number in range(6):
        while True:
            layout = {"tensor": draw.choice((1, 2, 4)), "pipeline": draw.choice((1, 2, 3, 4, 6))}
            layout |= {"expert": draw.choice((1, 2, 4, 8)), "expert_tensor": draw.choice((1, 2, 4, 5))}
            stages = {"virtual": draw.choice((1, 1, 2, 3)), "first_layers": draw.choice((None, None, 1, 2, 3))}
            stages["last_layers"] = draw.choice((None, None, 1, 2, 3))
            try:
                Layout(**layout, **stages).check(shape)
                break
            except CheckpointError:
                continue
        if stages["virtual"] > 1 and stages["first_layers"] is stages["last_layers"] is None:
            layout["layers_per_virtual_stage"] = 6 // layout["pipeline"] // stages["virtual"]
        else:
            layout |= {name: stages[name] for name in ("first_layers", "last_layers")}
        possible = ["torch_dist", "torch"][: 2 if layout["tensor"] % layout["expert_tensor"] == 0 else 1]
        build, ckpt_format = draw.choice(BUILDS), draw.choice(possible)
        print(layout, build, ckpt_format)
        target = tmp_path / str(number)
        convert(Options(source, target, loads=loads, ckpt_format=ckpt_format, build=build, **layout))
        source, loads = target, "megatron"
    convert(Options(source, tmp_path / "back", loads="megatron", saves="huggingface", verify=True))
    check_identical(tmp_path / "back", mixtral)


@pytest.mark.parametrize("shape", ["MIXTRAL_8X22B", "MISTRAL_V03"])
def test_other_shapes(tmp_path: Path, shape: str) -> None:
    model = hugging_face.random_model(**getattr(hugging_face, shape))
    original = hugging_face.save(model, tmp_path / "original")
    expert = 4 if shape.startswith("MIXTRAL") else 1
    there_and_back(original, tmp_path, 0, tensor=2, pipeline=2, expert=expert)


def test_many_shards(tmp_path: Path) -> None:
    model = hugging_face.random_model(**hugging_face.MIXTRAL)
    original = hugging_face.save(model, tmp_path / "original", max_shard_size="200KB")
    assert len(list(original.glob("*.safetensors"))) > 3
    there_and_back(original, tmp_path, 0, tensor=2, pipeline=2, expert=2)


def test_weights_of_torch_save(mixtral: Path, tmp_path: Path) -> None:
    """pytorch_model.bin, as older repositories have it."""
    original = tmp_path / "original"
    original.mkdir()
    torch.save(tensors(mixtral), original / "pytorch_model.bin")
    (original / "config.json").write_bytes((mixtral / "config.json").read_bytes())
    convert(Options(original, tmp_path / "megatron", tensor=2, expert=2))
    convert(Options(tmp_path / "megatron", tmp_path / "back", loads="megatron", saves="huggingface"))
    check_identical(tmp_path / "back", mixtral)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """A conversion to another dtype rounds as PyTorch does."""
    original = hugging_face.save(hugging_face.random_model(**hugging_face.MIXTRAL), tmp_path / "original")
    convert(Options(original, tmp_path / "megatron", tensor=2, pipeline=2, expert=4, dtype=dtype))
    convert(Options(tmp_path / "megatron", tmp_path / "back", loads="megatron", saves="huggingface"))
    found = tensors(tmp_path / "back")
    for name, tensor in tensors(original).items():
        assert found[name].dtype == dtype
        assert found[name].equal(tensor.to(dtype)), name


def test_the_result_loads_at_once(mixtral: Path, tmp_path: Path) -> None:
    """Config, generation config and tokenizer have travelled."""
    from transformers import AutoTokenizer

    convert(Options(mixtral, tmp_path / "megatron", tensor=2, ckpt_format="torch"))
    back = convert(Options(tmp_path / "megatron", tmp_path / "back", loads="megatron", saves="huggingface"))
    tokens = hugging_face.random_tokens(hugging_face.VOCABULARY, 2, 8)
    assert hugging_face.logits(back, tokens).equal(hugging_face.logits(mixtral, tokens))
    text = "a checkpoint of experts"
    assert AutoTokenizer.from_pretrained(back)(text) == AutoTokenizer.from_pretrained(mixtral)(text)
    assert (back / "generation_config.json").read_bytes() == (mixtral / "generation_config.json").read_bytes()


VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("tensor", [1, 4])
def test_padding_is_the_mean_row(mixtral: Path, tmp_path: Path, tensor: int) -> None:
    options = {"tensor": tensor, "ckpt_format": "torch", "make_vocab_size_divisible_by": 32}
    folder = convert(Options(mixtral, tmp_path / "megatron", **options))
    shards = [torch.load(file, weights_only=False)["model"] for file in sorted(folder.rglob("model_optim_rng.pt"))]
    weights = tensors(mixtral)
    for name, canonical in zip(("embedding.word_embeddings", "output_layer"), VOCABULARY_TENSORS, strict=True):
        rows = torch.cat([shard[f"{name}.weight"] for shard in shards])
        expected, multiple = weights[canonical], 32 * tensor
        assert len(rows) == -(-len(expected) // multiple) * multiple
        assert rows[: len(expected)].equal(expected)
        mean = expected.double().mean(0).to(expected.dtype)
        assert rows[len(expected) :].equal(mean.expand(len(rows) - len(expected), -1))


def test_extra_tokens(mixtral: Path, tmp_path: Path) -> None:
    """They are part of the vocabulary from then on; the others stay as they were."""
    convert(Options(mixtral, tmp_path / "megatron", tensor=4, extra_vocab_size=5, make_vocab_size_divisible_by=8))
    back = convert(Options(tmp_path / "megatron", tmp_path / "back", loads="megatron", saves="huggingface"))
    found = tensors(back)
    for name, tensor in tensors(mixtral).items():
        if name in VOCABULARY_TENSORS:
            mean = tensor.double().mean(0).to(tensor.dtype)
            tensor = torch.cat([tensor, mean.expand(5, -1)])
        assert found[name].equal(tensor), name
    model = hugging_face.load(back)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == hugging_face.VOCABULARY + 5

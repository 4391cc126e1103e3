"""The published models: sizes as the scripts have them, numbers of weights as published."""

import pytest

from ascend_patch.planning.errors import PlanningError
from ascend_patch.planning.layout import Layout
from ascend_patch.planning.memory import parameters
from ascend_patch.planning.models import MODELS, find
from tests.unit_tests.examples.test_scripts import dry_run, upstream_flags

FLAGS = {
    "layers": "--num-layers",
    "hidden": "--hidden-size",
    "ffn": "--ffn-hidden-size",
    "heads": "--num-attention-heads",
    "groups": "--num-query-groups",
    "experts": "--num-experts",
    "topk": "--moe-router-topk",
}


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("7b", "pretrain_mistral_7b_ptd.sh"),
        ("8x7b", "pretrain_mixtral_8x7b_ptd.sh"),
        ("8x22b", "pretrain_mixtral_8x22b_ptd.sh"),
    ],
)
def test_sizes_are_those_of_the_scripts(name: str, script: str) -> None:
    words = upstream_flags(dry_run(script))
    found = {field: int(words[words.index(flag) + 1]) for field, flag in FLAGS.items() if flag in words}
    assert {field: getattr(MODELS[name], field) for field in FLAGS} == {"experts": 0, "topk": 0} | found


@pytest.mark.parametrize(("name", "billions"), [("7b", 7.24), ("8x7b", 46.7), ("8x22b", 140.6)])
def test_numbers_of_weights(name: str, billions: float) -> None:
    assert parameters(MODELS[name], Layout(1), 0).all / 1e9 == pytest.approx(billions, rel=1e-3)


def test_active_weights() -> None:
    """12.9 and 39.1 billion are published, with the embedding, which is looked up."""
    for name, billions in (("8x7b", 12.9), ("8x22b", 39.1)):
        model = MODELS[name]
        assert (model.active_parameters + model.vocab * model.hidden) / 1e9 == pytest.approx(billions, rel=5e-3)


@pytest.mark.parametrize("name", ["8x7b", "8x7B", "Mixtral-8x7B"])
def test_names(name: str) -> None:
    assert find(name) is MODELS["8x7b"]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(PlanningError, match="--model 9x9b is not known; allowed are 7b, 8x7b, 8x22b"):
        find("9x9b")

"""Layers whose experts cannot do their own communication. What those do that can takes several ranks: system tests."""

from types import SimpleNamespace

import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError


def test_other_experts() -> None:
    from ascend_patch.modules.expert_overlap import overlap

    layer = SimpleNamespace(experts=torch.nn.Linear(1, 1), token_dispatcher="upstream's")
    with pytest.raises(AscendPatchError, match="the experts are Linear without the grouped linear layers"):
        overlap(layer, None)
    assert layer.token_dispatcher == "upstream's"

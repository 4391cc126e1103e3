"""When a patch is left out because of what is installed."""

import importlib.util

import pytest

from ascend_patch.engine.patch import Environment
from ascend_patch.features.conditions import without_fused_optimizer


@pytest.mark.parametrize(
    ("installed", "applies"),
    [
        ((), True),
        (("apex",), True),  # Ascend's, whose FusedAdam refuses to run
        (("apex", "amp_C"), False),
        (("transformer_engine",), False),
    ],
)
def test_whose_optimizer_runs(monkeypatch, installed, applies):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert (without_fused_optimizer(Environment("npu", "0.19.2")) is None) == applies

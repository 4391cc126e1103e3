"""Context parallelism where it has no place."""

import pytest
from megatron.core import parallel_state

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.features.inference import initialize_attention_state


def test_generation_needs_whole_sequences(monkeypatch):
    begin_step = initialize_attention_state(lambda context: "begun")
    assert begin_step(None) == "begun"
    monkeypatch.setattr(parallel_state, "get_context_parallel_world_size", lambda: 2)
    with pytest.raises(AscendPatchError, match="leave --context-parallel-size at 1"):
        begin_step(None)

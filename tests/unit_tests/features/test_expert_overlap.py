"""What --overlap-dispatch-backward-with-experts-wgrad does not go with is refused."""

from types import SimpleNamespace

import pytest

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.features.expert_overlap import config_post_init

FITS = {
    "overlap_dispatch_backward_with_experts_wgrad": True,
    "overlap_moe_expert_parallel_comm": False,
    "moe_token_dispatcher_type": "alltoall",
    "expert_model_parallel_size": 2,
    "expert_tensor_parallel_size": 1,
    "moe_grouped_gemm": True,
    "moe_pad_expert_input_to_capacity": False,
    "moe_shared_expert_overlap": False,
    "moe_apply_probs_on_input": False,
}


def initialize(**changes: object) -> SimpleNamespace:
    """A configuration, after upstream has seen it without the flag."""

    def upstream(self) -> None:
        assert not self.overlap_dispatch_backward_with_experts_wgrad
        self.seen = True

    config = SimpleNamespace(**FITS | changes)
    config_post_init(upstream)(config)
    return config


@pytest.mark.parametrize("wanted", [False, True])
def test_upstream_checks_the_rest(wanted: bool) -> None:
    config = initialize(overlap_dispatch_backward_with_experts_wgrad=wanted)
    assert config.seen
    assert config.overlap_dispatch_backward_with_experts_wgrad == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap_moe_expert_parallel_comm": True}, "behind another batch"),
        ({"moe_token_dispatcher_type": "allgather"}, "--moe-token-dispatcher-type alltoall. Use that one"),
        ({"expert_model_parallel_size": 1}, "nothing is sent"),
        ({"expert_tensor_parallel_size": 2}, "Use --expert-tensor-parallel-size 1"),
        ({"moe_grouped_gemm": False}, "Add --moe-grouped-gemm"),
        ({"moe_pad_expert_input_to_capacity": True}, "--moe-pad-expert-input-to-capacity"),
        ({"moe_shared_expert_overlap": True}, "behind a shared expert"),
        ({"moe_apply_probs_on_input": True}, "--moe-apply-probs-on-input"),
    ],
)
def test_refused(changes: dict, message: str) -> None:
    with pytest.raises(AscendPatchError, match=f"^--overlap-dispatch.* was given, but .*{message}"):
        initialize(**changes)
    initialize(**changes, overlap_dispatch_backward_with_experts_wgrad=False)

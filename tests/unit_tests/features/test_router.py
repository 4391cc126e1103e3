"""Upstream's whole router, its losses included, with our top-k and scores in it, against upstream's own on the CPU."""

import random

import pytest
import torch

from ascend_patch.features import router as feature
from tests.unit_tests.ops.checks import relative_error


@pytest.fixture(scope="module", autouse=True)
def _process_group():
    """Without one upstream drops the groups that it is given. Other tests of this process may keep one."""
    if torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class OneRank:
    """What the router asks of a process group."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def make_router(**options) -> torch.nn.Module:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=2,
        hidden_size=24,
        num_attention_heads=2,
        num_moe_experts=6,
        moe_router_topk=2,
        moe_router_dtype="fp32",
        use_cpu_initialization=True,
        add_bias_linear=False,
        **options,
    )
    one = OneRank()
    groups = ProcessGroupCollection(tp=one, cp=one, tp_cp=one, tp_dp_cp=one)
    router = TopKRouter(config, pg_collection=groups)
    router.set_layer_number(1)
    return router


def results(router: torch.nn.Module, hidden: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Map, probabilities, and gradients of the hidden states and the router's weight."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    MoEAuxLossAutoScaler.main_loss_backward_scale = None
    hidden = hidden.clone().requires_grad_()
    probs, routing_map = router(hidden)
    (probs * grad).sum().backward()
    MoEAuxLossAutoScaler.main_loss_backward_scale = None
    return [routing_map.cpu(), probs.detach().cpu(), hidden.grad.cpu(), router.weight.grad.cpu()]


LOSSES = {
    "none": {"moe_router_load_balancing_type": "none"},
    "aux loss": {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.3},
    "sequence aux loss": {"moe_router_load_balancing_type": "seq_aux_loss", "moe_aux_loss_coeff": 0.3},
    "z loss": {"moe_router_load_balancing_type": "none", "moe_z_loss_coeff": 0.2},
    "aux and z loss": {
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.3,
        "moe_z_loss_coeff": 0.2,
    },
    "probabilities of all": {
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.3,
        "moe_router_pre_softmax": True,
    },
}


def compare(monkeypatch, options: dict, device: torch.device) -> None:
    from megatron.core.transformer.moe import moe_logging, moe_utils
    from megatron.core.transformer.moe import router as upstream

    seed = random.SystemRandom().randrange(2**31)
    print(f"torch.manual_seed({seed})")  # pytest shows it when the test fails
    torch.manual_seed(seed)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(upstream.TopKRouter, "_apply_expert_bias", lambda *args, **kwargs: None)  # it is compiled
    router, hidden, grad = make_router(**options), torch.randn(9, 2, 24), torch.randn(18, 6)
    expected = results(router, hidden, grad)
    for name in ("topk_routing_with_score_function", "compute_routing_scores_for_aux_loss"):
        monkeypatch.setattr(upstream, name, getattr(feature, name)(getattr(moe_utils, name)))
    moe_logging.set_moe_metrics_tracker(None)  # it keeps its values on the device of the first
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device)
    router.weight.grad = None
    router.weight.data = router.weight.data.to(device)
    found = results(router, hidden.to(device), grad.to(device))
    moe_logging.set_moe_metrics_tracker(None)
    assert torch.equal(found[0], expected[0])
    for name, value, wanted in zip(("probs", "hidden", "weight"), found[1:], expected[1:], strict=True):
        assert relative_error(value, wanted) <= 1e-5, name


@pytest.fixture
def on_npu(npu_device, monkeypatch):
    from ascend_patch.ops import registry

    registry.select("npu")
    yield npu_device
    registry.select("cpu")


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_as_upstream(monkeypatch, options):
    compare(monkeypatch, options, torch.device("cpu"))


@pytest.mark.npu
@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_as_upstream_on_the_npu(monkeypatch, on_npu, options):
    from ascend_patch.ops import registry

    compare(monkeypatch, options, on_npu)
    report = registry.report()["topk_softmax"]
    assert report["calls"]["topk_softmax"] == {"npu": 1} and report["unsupported"] == {}

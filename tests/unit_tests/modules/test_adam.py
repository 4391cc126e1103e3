"""FusedAdam against torch's Adam and AdamW, and what it keeps where."""

import copy

import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError
from tests.unit_tests.ops.checks import relative_error


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((17, 9), (5,), (3,))]


def copies(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(t.detach().clone()) for t in params]


def give_gradients(*lists: list[torch.nn.Parameter]) -> None:
    """The same to each list; the last parameter never gets one."""
    for same in list(zip(*lists, strict=True))[:-1]:
        gradient = torch.randn_like(same[0])
        for parameter in same:
            parameter.grad = gradient.clone()


@pytest.mark.parametrize(("adam_w_mode", "theirs"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_like_torch(adam_w_mode: bool, theirs: type, weight_decay: float) -> None:
    from ascend_patch.modules.adam import FusedAdam

    ours_p = parameters()
    theirs_p = copies(ours_p)
    options = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    ours, reference = FusedAdam(ours_p, adam_w_mode=adam_w_mode, **options), theirs(theirs_p, **options)
    for _ in range(5):
        give_gradients(ours_p, theirs_p)
        ours.step()
        reference.step()
        for found, expected in zip(ours_p, theirs_p, strict=True):
            assert relative_error(found.detach(), expected.detach()) < 1e-6


def test_step_is_counted_for_the_group_and_resumes() -> None:
    """What upstream's distributed optimizer relies on: no `step` beside the moments, equal steps after a reload."""
    from ascend_patch.modules.adam import FusedAdam

    first = parameters()
    optimizer = FusedAdam(first, lr=1e-2)
    for _ in range(3):
        give_gradients(first)
        optimizer.step()
    assert optimizer.param_groups[0]["step"] == 3
    assert {name for state in optimizer.state.values() for name in state} == {"exp_avg", "exp_avg_sq"}

    second = copies(first)
    resumed = FusedAdam(second, lr=1.0)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["step"] = torch.tensor(3)  # as some checkpoints bring it
    resumed.load_state_dict(saved)
    give_gradients(first, second)
    optimizer.step()
    resumed.step()
    for found, expected in zip(second, first, strict=True):
        assert torch.equal(found, expected)


def test_closure() -> None:
    from ascend_patch.modules.adam import FusedAdam

    (parameter,) = params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = FusedAdam(params, lr=0.1)

    def closure() -> torch.Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (parameter < 1).all()


def test_options_of_transformer_engine_are_refused() -> None:
    from ascend_patch.modules.adam import FusedAdam

    with pytest.raises(AscendPatchError, match=r"master_weights.*--use-precision-aware-optimizer"):
        FusedAdam(parameters(), master_weights=True)
    with pytest.raises(AscendPatchError, match="capturable"):
        FusedAdam(parameters(), capturable=True)

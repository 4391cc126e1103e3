"""FusedAdam against torch's Adam and AdamW, and what it keeps where."""

import copy

import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError
from tests.unit_tests.ops.checks import relative_error


@pytest.fixture(autouse=True, params=[False, True], ids=["apart", "side by side"])
def _layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layouts of the state; the second is the one for npu."""
    monkeypatch.setattr("ascend_patch.modules.adam.joins_neighbours", lambda: request.param)


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


def test_laid_out_side_by_side() -> None:
    """In the order of the gradients, values kept; what shares its storage with others stays where it is."""
    from ascend_patch.modules.adam import lay_out_side_by_side

    shapes = [(4, 3), (5,), (2, 2)]
    joint = torch.randn(9)
    params = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(joint[2:7]), torch.randn(2, 2)]
    gradients = torch.randn(21).split([4, 5, 12])  # those of the last parameter come first
    for p, gradient in zip(params, reversed(gradients), strict=True):
        p.grad = gradient.view(p.shape)
    values = [p.detach().clone() for p in params]
    states: list[dict] = [{"exp_avg": torch.randn(4, 3), "exp_avg_sq": torch.rand(4, 3)}, {}, {}]
    kept = dict(states[0])
    lay_out_side_by_side(params, states)

    for p, value, shape in zip(params, values, shapes, strict=True):
        assert torch.equal(p, value) and p.shape == shape
    assert params[1].untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()
    assert params[0].data_ptr() == params[2].data_ptr() + 4 * params[2].element_size()
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(states[0][name], kept[name])
        assert not states[1][name].any() and not states[2][name].any()
        assert [state[name].storage_offset() for state in states] == [9, 4, 0]
        assert len({state[name].untyped_storage().data_ptr() for state in states}) == 1


def test_a_loaded_state_is_laid_out_again() -> None:
    """Loading replaces the tensors; the next step brings them back together where that helps."""
    from ascend_patch.modules import adam

    params = parameters()[:2]
    optimizer = adam.FusedAdam(params)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    storages = {optimizer.state[p]["exp_avg"].untyped_storage().data_ptr() for p in params}
    assert len(storages) == (1 if adam.joins_neighbours() else 2)

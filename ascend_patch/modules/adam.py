"""Adam as Apex and TransformerEngine have it: one step count for a parameter group, one kernel for all of it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.ops.adam import adam_step, joins_neighbours

_STATE = ("exp_avg", "exp_avg_sq")


class FusedAdam(torch.optim.Optimizer):
    """Stands for ``apex.optimizers.FusedAdam``; state: ``exp_avg`` and ``exp_avg_sq``, and ``step`` in the group.

    Args:
        params: parameters or groups.
        lr, betas, eps, weight_decay, bias_correction: as in :func:`ascend_patch.ops.adam.adam_step`.
        adam_w_mode: decoupled weight decay (AdamW).
        capturable: accepted when False: there are no CUDA graphs to capture.

    Raises:
        AscendPatchError: an option that only TransformerEngine's optimizer has (``--use-precision-aware-optimizer``).
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        capturable: bool = False,
        **unsupported,
    ) -> None:
        if unsupported or capturable:
            names = sorted(unsupported) + ["capturable"] * capturable
            raise AscendPatchError(
                f"The optimizer options {', '.join(names)} need TransformerEngine's FusedAdam. Leave out "
                "--use-precision-aware-optimizer and --optimizer-cuda-graph."
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"bias_correction": bias_correction})
        self.adam_w_mode = adam_w_mode
        self._state_was_loaded = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.load_state_dict`, which replaces every tensor of the state."""
        super().load_state_dict(state_dict)
        self._state_was_loaded = True

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            # A loaded checkpoint may bring the count as a tensor.
            group["step"] = int(group.get("step", 0)) + 1
            self._prepare_state(params)
            adam_step(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                step=group["step"],
                lr=float(group["lr"]),
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                adam_w_mode=self.adam_w_mode,
                bias_correction=group["bias_correction"],
            )
        self._state_was_loaded = False
        return loss

    def _prepare_state(self, params: list[torch.Tensor]) -> None:
        """Give those of ``params`` a state that have none yet."""
        if joins_neighbours():
            without = [p for p in params if self._state_was_loaded or not self.state[p]]
            if without:
                lay_out_side_by_side(without, [self.state[p] for p in without])
            return
        for p in params:
            for name in _STATE:
                if name not in self.state[p]:
                    self.state[p][name] = torch.zeros_like(p)


@torch.no_grad()
def lay_out_side_by_side(params: Sequence[torch.Tensor], states: Sequence[dict[str, Any]]) -> None:
    """Move the state of ``params``, and the parameters themselves, to where one follows on the other.

    Their order is that of the gradients in memory, which upstream's buffers decide. A parameter that shares its
    storage with others, in upstream's parameter buffer for one, stays where it is. Values are kept; a state that is
    missing becomes zero.

    Args:
        params: parameters with gradients.
        states: ``exp_avg`` and ``exp_avg_sq`` of each, or nothing; filled in place.
    """
    alike: dict[Any, list[tuple[torch.Tensor, dict[str, Any]]]] = defaultdict(list)
    for p, state in zip(params, states, strict=True):
        alike[p.device, p.dtype].append((p, state))
    for (device, dtype), members in alike.items():
        members.sort(key=lambda member: member[0].grad.data_ptr())  # type: ignore[union-attr]
        # The parameters first: for a moment they exist twice, which the state does not have to come on top of.
        movable = [p for p, _ in members if p.untyped_storage().nbytes() == p.numel() * p.element_size()]
        for p, place in zip(movable, _places(movable, torch.empty, device, dtype), strict=True):
            p.data = place.copy_(p)
        for name in _STATE:
            places = _places([p for p, _ in members], torch.zeros, device, dtype)
            for (_, state), place in zip(members, places, strict=True):
                if name in state:
                    place.copy_(state[name])
                state[name] = place


def _places(
    like: Sequence[torch.Tensor], allocate: Callable[..., torch.Tensor], device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Tensors of the shapes of ``like``, one after the other in one piece of memory."""
    flat = allocate(sum(t.numel() for t in like), device=device, dtype=dtype)
    return [piece.view(t.shape) for piece, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]

"""Adam as Apex and TransformerEngine have it: one step count for a parameter group, one kernel for all of it."""

import torch

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.ops.adam import adam_step


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
            for p in params:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
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
        return loss

"""Adam and AdamW (Kingma and Ba 2014, arXiv:1412.6980; Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from collections.abc import Sequence

from torch import Tensor

from ascend_patch.ops.registry import implementation, run


def adam_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adam_w_mode: bool = True,
    bias_correction: bool = True,
) -> None:
    """Update ``params``, ``exp_avgs`` and ``exp_avg_sqs`` in place; the names and meanings of Apex's
    ``FusedAdam``.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: lists of equal length; the four tensors at one index have one
            shape. They may differ in dtype; each result is rounded to the dtype of the tensor that holds it.
        step: number of this update, from 1.
        lr, betas, eps, weight_decay: hyperparameters, the same for all tensors.
        adam_w_mode: decay the weights themselves (AdamW) instead of adding ``weight_decay * param`` to the
            gradient.
        bias_correction: divide the averages by ``1 - beta ** step``.

    Arithmetic is float32 (float64 for float64 tensors). ``eps`` is added after the root and after its bias
    correction. The relative error of an update stays below 1e-5 (float32).

    Raises:
        ValueError: lists of different lengths, or ``step`` below 1.
    """
    if not len(params) == len(grads) == len(exp_avgs) == len(exp_avg_sqs):
        raise ValueError(
            f"adam_step: found {len(params)} params, {len(grads)} grads, {len(exp_avgs)} exp_avgs and "
            f"{len(exp_avg_sqs)} exp_avg_sqs; the lists must be equally long."
        )
    if step < 1:
        raise ValueError(f"adam_step: step counts updates from 1, found {step}.")
    run(
        "adam",
        "adam_step",
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        step=step,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        adam_w_mode=adam_w_mode,
        bias_correction=bias_correction,
    )


def joins_neighbours() -> bool:
    """Whether :func:`adam_step` gains from tensors that follow on each other in memory, all four lists alike."""
    return getattr(implementation("adam"), "JOINS_NEIGHBOURS", False)

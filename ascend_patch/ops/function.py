"""Calling a :class:`torch.autograd.Function` for less where no gradient is wanted."""

from typing import Any

import torch


class _NoContext:
    """What ``forward`` is given in place of a context: it keeps nothing."""

    def save_for_backward(self, *tensors: Any) -> None:
        """Nothing."""

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Nothing."""

    def set_materialize_grads(self, value: bool) -> None:
        """Nothing."""


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``; without gradients its ``forward`` alone.

    In a step of generation ``apply`` itself takes longer than most of what it calls.
    """
    if torch.is_grad_enabled():
        return function.apply(*args)
    return function.forward(_NoContext(), *args)

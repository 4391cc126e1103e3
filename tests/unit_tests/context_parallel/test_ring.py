"""The order of the ring: the next keys and values are on their way while those at hand are used."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ascend_patch.context_parallel import ring

RANKS = 4


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, as rank 1 of a ring in which everybody holds the same."""
    events: list[str] = []

    class PassedOn:
        def __init__(self, tensors: list[torch.Tensor], group: object) -> None:
            # Keys and values are passed on as they are, gradients in a dtype of their own.
            self.tensors, self.what = tensors, "keys" if tensors[0].dtype == torch.bfloat16 else "gradients"
            events.append(f"{self.what} leave")

        def wait(self) -> list[torch.Tensor]:
            events.append(f"{self.what} arrive")
            return self.tensors

    def noted(function: Callable) -> Callable:
        def call(*args, **kwargs):
            events.append("attention")
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(ring, "PassedOn", PassedOn)
    for name in ("attention_forward", "attention_backward"):
        monkeypatch.setattr(ring, name, noted(getattr(ring, name)))
    return events


def test_messages_are_in_flight_during_attention(order: list[str]) -> None:
    group = SimpleNamespace(size=lambda: RANKS, rank=lambda: 1)
    tensors = [torch.randn(4, 1, 2, 8).to(torch.bfloat16).requires_grad_() for _ in range(3)]
    output = ring.ring_attention(*tensors, group=group, scale=0.3, causal=True)
    assert order == ["keys leave", "attention", "keys arrive"] * (RANKS - 1) + ["attention"]
    order.clear()
    output.sum().backward()
    first = ["keys leave", "attention", "gradients leave", "keys arrive"]
    between = ["keys leave", "attention", "gradients arrive", "gradients leave", "keys arrive"]
    last = ["attention", "gradients arrive", "gradients leave", "gradients arrive"]
    assert order == first + between * (RANKS - 2) + last

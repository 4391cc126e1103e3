"""Recording one training step: hooks on every module, and the gradients as the optimizer receives them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ascend_patch.trace import names
from ascend_patch.trace.digest import Digests
from ascend_patch.trace.store import BACKWARD, FORWARD, GRADIENT, Coordinates, Layout, Record, is_expert


class _Place(NamedTuple):
    """The fields of a :class:`Record` that precede its digest."""

    direction: str
    name: str
    output: int
    call: int
    micro_batch: int
    chunk: int
    placement: tuple[str, ...]


class Recorder:
    """Collects digests while a step runs.

    Args:
        chunks: the rank's model chunks, unwrapped (``GPTModel``).
    """

    def __init__(self, chunks: Sequence[nn.Module], layout: Layout, coordinates: Coordinates) -> None:
        self._layout = layout
        self._chunks = [_Chunk(self, number, root, coordinates.expert) for number, root in enumerate(chunks)]
        self._digests = Digests()
        self._places: list[_Place] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Within: every forward and backward pass is recorded."""
        handles = [handle for chunk in self._chunks for handle in chunk.hook()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, place: _Place, tensor: torch.Tensor) -> None:
        """Digest a tensor."""
        if place.micro_batch < self._layout.micro_batches:  # beyond: upstream repeats a step to look for faults
            self._places.append(place)
            self._digests.add(tensor)

    def parameters(self, optimizer: Any) -> None:
        """Digest each parameter's gradient, or this rank's part of it, as ``optimizer.step`` is about to use it."""
        sharded = ("dp",) if self._layout.distributed_optimizer else ()
        for chunk in reversed(self._chunks):
            # The gradients of the last layer are ready first.
            for name, parameter, elements in reversed(chunk.parameters()):
                gradient = getattr(parameter, "main_grad", parameter.grad)
                owned = _owned(optimizer, parameter) if sharded else slice(0, parameter.numel())
                if gradient is None or owned is None:
                    continue
                start, stop = max(owned.start, elements.start), min(owned.stop, elements.stop)
                if start < stop:
                    split = ("tp",) if getattr(parameter, "tensor_model_parallel", False) else ()
                    place = _Place(GRADIENT, name, 0, 0, 0, chunk.number, split + sharded)
                    self.add(place, gradient.reshape(-1)[start:stop])

    def records(self, output_scale: float, parameter_scale: float) -> tuple[Record, ...]:
        """All of them, copied from the device.

        Args:
            output_scale: factor for gradients of outputs.
            parameter_scale: the same for those of parameters.
        """
        scales = {FORWARD: 1.0, BACKWARD: output_scale, GRADIENT: parameter_scale}
        return tuple(
            Record(*place, digest.scaled(scales[place.direction]))
            for place, digest in zip(self._places, self._digests.to_host(), strict=True)
        )

    def partial(self, name: str) -> bool:
        """Whether a module's output is one of several terms, which the dispatcher adds up."""
        if self._layout.expert_tensor == 1 or not is_expert(name):
            return False
        path = name.partition("[")[0].split(".")
        return path[-1] in ("experts", "linear_fc2") or path[-2] == "local_experts"


class _Chunk:
    """One model chunk, and which micro-batch it is at."""

    def __init__(self, recorder: Recorder, number: int, root: nn.Module, expert_rank: int) -> None:
        self.number = number
        self._recorder = recorder
        self._root = root
        self._modules = list(names.named_modules(root, expert_rank))
        self._forward = self._backward = -1
        self._calls: Counter[tuple[str, int, bool]] = Counter()

    def hook(self) -> Iterator[Any]:
        """Register the hooks; yields their handles."""
        yield self._root.register_forward_pre_hook(self._begin_forward)
        for named in self._modules:
            yield named.module.register_forward_hook(partial(self._after_forward, named))

    def parameters(self) -> list[tuple[str, nn.Parameter, slice]]:
        """Of all modules; see :func:`names.named_parameters`."""
        return [found for named in self._modules for found in names.named_parameters(named)]

    def _begin_forward(self, *_: object) -> None:
        self._forward += 1

    def _begin_backward(self, micro_batch: int, gradient: torch.Tensor) -> None:
        self._backward = micro_batch

    def _after_forward(self, named: names.Named, module: nn.Module, arguments: tuple, output: object) -> None:
        # Recomputed activations are those of the micro-batch that is in its backward pass. They were recorded the
        # first time, but without a graph, so that only now there is something that gets a gradient.
        again = torch._C._current_graph_task_id() != -1
        micro_batch = self._backward if again else self._forward
        call = self._calls[named.name, micro_batch, again]
        self._calls[named.name, micro_batch, again] += 1
        for number, tensor in _tensors(output):
            record = partial(self._record, named, arguments, number, call, micro_batch)
            if not again:
                record(FORWARD, tensor)
            # Where gradients are off, an output can still ask for one: an input that is returned as it is.
            if tensor.requires_grad and torch.is_grad_enabled():
                if module is self._root:
                    tensor.register_hook(partial(self._begin_backward, micro_batch))
                tensor.register_hook(partial(record, BACKWARD))

    def _record(
        self,
        named: names.Named,
        arguments: tuple,
        output: int,
        call: int,
        micro_batch: int,
        direction: str,
        tensor: torch.Tensor | None,
    ) -> None:
        if tensor is None:  # the gradient of one of several outputs of an operator, when only another one has any
            return
        for name, piece in names.parts(named, arguments, tensor):
            placement = ("partial",) if direction == FORWARD and self._recorder.partial(name) else ()
            place = _Place(direction, name, output, call, micro_batch, self.number, placement)
            self._recorder.add(place, piece)


def _tensors(output: object) -> list[tuple[int, torch.Tensor]]:
    """The tensors of a module's output and their places in it."""
    if isinstance(output, dict):
        output = tuple(output.values())
    flat = output if isinstance(output, tuple | list) else (output,)
    return [(number, one) for number, one in enumerate(flat) if isinstance(one, torch.Tensor)]


def _owned(optimizer: Any, parameter: nn.Parameter) -> slice | None:
    """The elements of the flat parameter whose gradient a distributed optimizer reduces to this rank."""
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        if parameter in getattr(one, "model_param_gbuf_map", {}):
            found = one._get_model_param_range_map(parameter)["param"]
            return slice(found.start, found.end)
    return None

"""Bytes that a device sends in a step, by the messages that upstream's modules exchange.

A message of a collective is counted by what each rank contributes. What is sent for it is that of the ring algorithms
(Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005), which send least. Activations and
their gradients are bfloat16, gradients of weights float32, and weights bfloat16. Counts of a few bytes, such as the
gradient norm or how many tokens go to each expert, are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ascend_patch.planning.layout import DEVICES_PER_NODE, Layout, Training
from ascend_patch.planning.memory import parameters

_BF16, _FP32 = 2, 4
KINDS = ("TP", "PP", "EP", "DP", "CP")
"""Tensor and expert tensor, pipeline, expert, data and context parallelism."""


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind and operation in a step.

    Attributes:
        kind: one of :data:`KINDS`.
        operation: ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all`` or ``send``.
        ranks: of the group.
        contributed: bytes that go in on each rank.
        span: devices from the first rank of the group to the last.
    """

    kind: str
    operation: str
    ranks: int
    contributed: int
    span: int

    @property
    def sent(self) -> int:
        """Bytes that leave the device."""
        others = self.ranks - 1
        match self.operation:
            case "all_gather":
                return others * self.contributed
            case "all_reduce":
                return 2 * others * self.contributed // self.ranks
            case "reduce_scatter" | "all_to_all":
                return others * self.contributed // self.ranks
        return self.contributed

    @property
    def inside_node(self) -> bool:
        return self.span <= DEVICES_PER_NODE


def traffic(training: Training, layout: Layout, stage: int) -> list[Traffic]:
    """Of a device of pipeline rank ``stage``; groups of one rank exchange nothing."""
    found = (*_tensor(training, layout, stage), *_experts(training, layout), *_pipeline(training, layout, stage))
    return [one for one in (*found, *_context(training, layout), *_data(training, layout, stage)) if one.ranks > 1]


def sent(messages: list[Traffic], kind: str) -> int:
    """Bytes of one kind that leave the device."""
    return sum(one.sent for one in messages if one.kind == kind)


def _own(training: Training, layout: Layout) -> tuple[int, int, int]:
    """Tokens of a micro batch on a device, bytes of their hidden states, and layers times micro batches."""
    tokens = layout.micro * training.sequence // (layout.cp * layout.tp)
    passes = training.model.layers // layout.pp * layout.micro_batches(training)
    return tokens, _BF16 * tokens * training.model.hidden, passes


def _tensor(training: Training, layout: Layout, stage: int) -> Iterator[Traffic]:
    model = training.model
    tokens, hidden, passes = _own(training, layout)
    blocks = passes * (1 if model.experts else 2)  # attention; a dense MLP exchanges the same
    number = layout.micro_batches(training)
    first, last = stage == 0, stage == layout.pp - 1
    # A block gathers its input, once more for its weights' gradients, and the gradient of its output; it scatters its
    # output and the gradient of its input. Recomputation is the forward pass again.
    again = blocks * layout.recompute
    gathered = (3 * blocks + again + number * (first + 2 * last)) * hidden
    gathered += number * last * layout.tp * tokens * 2 * _FP32  # of the softmax over a vocabulary that is split
    scattered = (2 * blocks + again + number * (first + last)) * layout.tp * hidden

    def of_tensor(operation: str, contributed: int) -> Traffic:
        return Traffic("TP", operation, layout.tp, contributed, layout.tp)

    yield of_tensor("all_gather", gathered)
    yield of_tensor("reduce_scatter", scattered)
    yield of_tensor("all_reduce", _FP32 * parameters(model, layout, stage).replicated)
    if model.experts:
        ways = 2 + layout.recompute
        expert = passes * model.topk * (ways * hidden + (1 + layout.recompute) * _BF16 * tokens)
        back = passes * model.topk * (ways * hidden + _BF16 * tokens)
        yield Traffic("TP", "all_gather", layout.etp, expert, layout.etp)
        yield Traffic("TP", "reduce_scatter", layout.etp, layout.etp * back, layout.etp)


def _experts(training: Training, layout: Layout) -> Iterator[Traffic]:
    """Tokens to their experts and back, with their weights one way, and the gradients of all that."""
    tokens, hidden, passes = _own(training, layout)
    ways = 4 + 2 * layout.recompute
    contributed = passes * training.model.topk * (ways * hidden + (2 + layout.recompute) * _BF16 * tokens)
    yield Traffic("EP", "all_to_all", layout.ep, contributed, layout.ep * layout.etp)


def _pipeline(training: Training, layout: Layout, stage: int) -> Iterator[Traffic]:
    """Hidden states on, gradients back, at the end of each model chunk but the model's own ends."""
    _, hidden, _ = _own(training, layout)
    chunks = 2 * layout.vpp - (stage == 0) - (stage == layout.pp - 1)
    contributed = layout.micro_batches(training) * chunks * hidden
    yield Traffic("PP", "send", layout.pp, contributed, 2 * layout.devices // layout.pp)


def _context(training: Training, layout: Layout) -> Iterator[Traffic]:
    """Keys and values around a ring, in the backward pass with their gradients (Liu et al., "Ring Attention", 2023).

    The gradients are float32, and go once more: to the rank whose keys these are.
    """
    model = training.model
    tokens, _, passes = _own(training, layout)
    keys_and_values = 2 * _BF16 * tokens * model.groups * model.head_dim
    rounds = (2 + layout.recompute) * (layout.cp - 1) + _FP32 // _BF16 * layout.cp
    yield Traffic("CP", "send", layout.cp, passes * rounds * keys_and_values, layout.tp * layout.cp)


def _data(training: Training, layout: Layout, stage: int) -> Iterator[Traffic]:
    found = parameters(training.model, layout, stage)
    span = layout.devices // layout.pp
    for number, ranks in ((found.dense, layout.dp * layout.cp), (found.experts, layout.edp)):
        if layout.distributed_optimizer:
            yield Traffic("DP", "reduce_scatter", ranks, _FP32 * number, span)
            yield Traffic("DP", "all_gather", ranks, _BF16 * number // ranks, span)
        else:
            yield Traffic("DP", "all_reduce", ranks, _FP32 * number, span)

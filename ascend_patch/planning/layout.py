"""A way to deal a training out to devices, as Megatron-LM's flags name it; and those worth a look."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ascend_patch.planning.models import Model

DEVICES_PER_NODE = 8
"""Tensor parallel groups do not leave a node."""
_LEAST_PART = 4096
"""Tokens of a sequence for which a context parallel rank is worth its messages."""
_MICRO_BATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        sequence: tokens of a sample.
        batch: samples of an iteration, ``--global-batch-size``.
    """

    model: Model
    sequence: int
    batch: int


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel groups; sequence parallelism goes with tensor parallelism.

    Attributes:
        tp, pp, ep, etp, cp, dp: tensor, pipeline, expert, expert tensor, context and data parallel sizes.
        vpp: model chunks of a pipeline rank.
        micro: samples of a micro batch.
        recompute: ``--recompute-granularity full --recompute-method uniform``, of each layer.
        distributed_optimizer: ``--use-distributed-optimizer``.
    """

    dp: int
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    cp: int = 1
    micro: int = 1
    recompute: bool = False
    distributed_optimizer: bool = True

    @property
    def devices(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    @property
    def edp(self) -> int:
        """Data parallel size of experts."""
        return self.tp * self.cp * self.dp // (self.etp * self.ep)

    def micro_batches(self, training: Training) -> int:
        """That a pipeline has in an iteration."""
        return training.batch // (self.dp * self.micro)

    def fits(self, training: Training) -> bool:
        """Whether every size divides what upstream wants it to divide."""
        model = training.model
        groups = self.dp * self.tp * self.cp
        return not (
            model.groups % self.tp
            or model.ffn % self.tp
            or model.layers % (self.pp * self.vpp)
            or (model.experts % self.ep if model.experts else self.ep * self.etp > 1)
            or model.ffn % self.etp
            or groups % (self.ep * self.etp)
            or training.batch % (self.dp * self.micro)
            or training.sequence % (self.tp * self.cp * (2 if self.cp > 1 else 1))
            # Upstream deals out micro batches to model chunks in rounds of the pipeline's length.
            or (self.vpp > 1 and (self.pp == 1 or self.micro_batches(training) % self.pp))
        )


def candidates(training: Training, devices: int) -> Iterator[Layout]:
    """Every layout of so many devices that upstream takes, of those that make sense.

    The distributed optimizer is on: without it there is more in memory, and no less to send.
    """
    model = training.model
    tensor = _divisors(min(model.groups, DEVICES_PER_NODE))
    context = [size for size in _powers(devices) if size == 1 or training.sequence // size >= _LEAST_PART]
    for tp, pp, cp in itertools.product(tensor, _divisors(model.layers), context):
        if devices % (tp * pp * cp):
            continue
        dp = devices // (tp * pp * cp)
        chunks = [1] if pp == 1 else _divisors(model.layers // pp)
        experts = _divisors(model.experts) if model.experts else [1]
        expert_tensor = sorted({1, tp}) if model.experts else [1]
        for vpp, ep, etp, micro, recompute in itertools.product(
            chunks, experts, expert_tensor, _MICRO_BATCHES, (False, True)
        ):
            layout = Layout(dp, tp, pp, vpp, ep, etp, cp, micro, recompute)
            if layout.fits(training):
                yield layout


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]

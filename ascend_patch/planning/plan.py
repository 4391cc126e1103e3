"""Layouts in the order of what they cost, of those that fit into the memory of a device."""

from dataclasses import dataclass
from functools import cached_property

from ascend_patch.planning import communication, memory
from ascend_patch.planning.communication import KINDS, Traffic
from ascend_patch.planning.errors import PlanningError
from ascend_patch.planning.layout import Layout, Training, candidates
from ascend_patch.planning.memory import Memory

USABLE = 0.9
"""Of a device's memory: the rest is for buffers of HCCL, the allocator's gaps and all else that has no formula here."""
GIB = 2**30

# What is assumed of a device, for the order of the layouts alone: operations of its matrix products in a second, and
# bytes that it sends in a second inside of a node and between nodes.
_OPERATIONS, _INSIDE, _BETWEEN = 1.5e14, 1.5e11, 2e10


@dataclass(frozen=True)
class Plan:
    """A layout and what it takes, by formula."""

    training: Training
    layout: Layout

    @property
    def name(self) -> str:
        """ "TP2 PP4 EP8 ETP1 DP16 recompute": what is not upstream's default. That of ETP is TP."""
        layout = self.layout
        sizes = {"TP": layout.tp, "PP": layout.pp, "VPP": layout.vpp, "EP": layout.ep, "CP": layout.cp, "DP": layout.dp}
        words = [f"{name}{size}" for name, size in sizes.items() if size > 1] or ["DP1"]
        if self.training.model.experts and layout.etp != layout.tp:
            words.append(f"ETP{layout.etp}")
        if layout.micro > 1:
            words.append(f"micro batch {layout.micro}")
        return " ".join([*words, *["recompute"] * layout.recompute])

    @cached_property
    def stage(self) -> int:
        """The pipeline rank that needs most memory."""
        return max(self._ends, key=lambda stage: memory.memory(self.training, self.layout, stage).total)

    @property
    def _ends(self) -> list[int]:
        """The first two ranks and the last: between them, each needs less than the one before."""
        return sorted({0, min(1, self.layout.pp - 1), self.layout.pp - 1})

    @cached_property
    def memory(self) -> Memory:
        """Of a device of :attr:`stage`."""
        return memory.memory(self.training, self.layout, self.stage)

    @cached_property
    def traffic(self) -> list[Traffic]:
        """Of a device that sends most."""
        found = [communication.traffic(self.training, self.layout, stage) for stage in self._ends]
        return max(found, key=lambda messages: sum(one.sent for one in messages))

    @property
    def sent(self) -> dict[str, int]:
        """Bytes that a device sends in a step, by kind."""
        return {kind: communication.sent(self.traffic, kind) for kind in KINDS}

    @property
    def bubble(self) -> float:
        """Time that a pipeline's ranks wait, as a share of the time that they compute (Narayanan et al., 2021)."""
        return (self.layout.pp - 1) / (self.layout.vpp * self.layout.micro_batches(self.training))

    @cached_property
    def cost(self) -> float:
        """Something like the time of a step: products with the bubble, then messages, none of them hidden."""
        model, layout = self.training.model, self.layout
        tokens = self.training.batch * self.training.sequence
        # Forward and backward, and forward again; scores and values are of half of the pairs.
        passes = 4 if layout.recompute else 3
        pairs = model.layers * self.training.sequence * model.heads * model.head_dim
        operations = passes * tokens * 2 * (model.active_parameters + pairs) / layout.devices
        messages = sum(one.sent / (_INSIDE if one.inside_node else _BETWEEN) for one in self.traffic)
        return operations / _OPERATIONS * (1 + self.bubble) + messages

    def fits(self, capacity: int) -> bool:
        return self.memory.total <= USABLE * capacity


def plan(training: Training, devices: int, capacity: int) -> list[Plan]:
    """Layouts for so many devices of ``capacity`` bytes, the cheapest first.

    Raises:
        PlanningError: there is no layout of so many devices, or none that fits.
    """
    found = [Plan(training, layout) for layout in candidates(training, devices)]
    name = training.model.name
    if not found:
        raise PlanningError(
            f"No layout of {name} has {devices} devices with {training.batch} samples of {training.sequence} tokens: "
            f"TP must divide {training.model.groups} groups of queries, PP {training.model.layers} layers, EP "
            f"{training.model.experts or 1} experts, and DP the samples. Take a power of two, or more samples "
            "(--global-batch-size)."
        )
    fitting = [one for one in found if one.fits(capacity)]
    if not fitting:
        least = min(found, key=lambda one: one.memory.total)
        raise PlanningError(
            f"No layout of {name} on {devices} devices fits into {USABLE:.0%} of {capacity / GIB:g} GiB, which is what "
            f"--memory leaves. The smallest, {least.name}, needs {least.memory.total / GIB:.1f} GiB: "
            f"devices of {least.memory.total / USABLE / GIB:.1f} GiB would do. Take more devices or a shorter sequence."
        )
    # Of equals, the one with fewer parts.
    return sorted(fitting, key=lambda one: (one.cost, one.layout.tp * one.layout.pp * one.layout.vpp, one.memory.total))

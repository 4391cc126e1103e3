"""Names that do not depend on the layout: layers and experts with the numbers they have in the whole model."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

ROOT = "model"
"""The name of a model chunk itself."""

_NUMBERED = re.compile(r"(weight|bias)(\d+)")  # TransformerEngine's parameters of a grouped linear layer


@dataclass(frozen=True)
class Named:
    """A module and its name.

    Attributes:
        first_expert: of a linear layer of several experts, the number of the first; otherwise None.
        experts: how many there are.
    """

    name: str
    module: nn.Module
    first_expert: int | None = None
    experts: int = 0


def named_modules(root: nn.Module, expert_rank: int, prefix: str = ROOT) -> Iterator[Named]:
    """Every module of a model chunk, the chunk first.

    Args:
        expert_rank: this rank's place in the expert parallel group.
        prefix: the name of ``root``.
    """
    yield Named(prefix, root)
    path = "" if prefix == ROOT else f"{prefix}."
    experts = getattr(root, "num_local_experts", 0) if prefix.rpartition(".")[2] == "experts" else 0
    for key, child in root.named_children():
        number = getattr(child, "layer_number", None)
        if key.isdecimal() and isinstance(number, int):
            key = str(number - 1)
        elif prefix.endswith(".experts.local_experts"):
            key = str(expert_rank * len(list(root.children())) + int(key))
        if experts and key in ("linear_fc1", "linear_fc2"):
            yield Named(path + key, child, expert_rank * experts, experts)
        else:
            yield from named_modules(child, expert_rank, path + key)


def named_parameters(named: Named) -> Iterator[tuple[str, nn.Parameter, slice]]:
    """A module's own parameters, and of which elements of the flat parameter each name is.

    The one parameter of several experts, ``[experts, …]``, appears once for each, as TransformerEngine names its own.
    """
    for key, parameter in named.module.named_parameters(recurse=False):
        whole = slice(0, parameter.numel())
        first, path = named.first_expert, "" if named.name == ROOT else f"{named.name}."
        if first is None:
            yield path + key, parameter, whole
        elif found := _NUMBERED.fullmatch(key):
            yield f"{path}{found[1]}{first + int(found[2])}", parameter, whole
        elif parameter.shape[0] == named.experts:
            size = parameter[0].numel()
            for expert in range(named.experts):
                yield f"{path}{key}{first + expert}", parameter, slice(expert * size, (expert + 1) * size)
        else:
            yield path + key, parameter, whole


def parts(named: Named, arguments: tuple, output: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """An output (or its gradient) by name: one for each expert where the module says whose rows are whose.

    A linear layer of several experts is called with its input and the list of each expert's number of rows.
    """
    if named.first_expert is None or len(arguments) < 2:
        return [(named.name, output)]
    rows = arguments[1]
    if not isinstance(rows, list) or len(rows) != named.experts or output.shape[:1] != (sum(rows),):
        return [(named.name, output)]
    pieces = enumerate(output.split(rows), named.first_expert)
    return [(f"{named.name}[{expert}]", piece) for expert, piece in pieces]

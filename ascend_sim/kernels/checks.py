"""Constraints that several operators share, said once: data types, dimensions, shapes."""

import torch

from ascend_sim.errors import ConstraintError, require

#: What the fused operators of the Atlas A2 / A3 training products take; none takes float64.
FLOATING = (torch.float16, torch.bfloat16, torch.float32)
INDEX = (torch.int32, torch.int64)


def short(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def require_dtype(name: str, tensor: torch.Tensor, allowed: tuple[torch.dtype, ...] = FLOATING) -> None:
    """`tensor` has one of the data types `allowed`."""
    require(
        tensor.dtype in allowed,
        f"{name} is {short(tensor.dtype)}, allowed: {', '.join(map(short, allowed))}",
    )


def require_same_dtype(**tensors: torch.Tensor | None) -> None:
    """All the given tensors share one data type; None is skipped."""
    found = {name: short(tensor.dtype) for name, tensor in tensors.items() if tensor is not None}
    require(len(set(found.values())) <= 1, f"one data type is needed, got {_list(found)}")


def require_dim(name: str, tensor: torch.Tensor, *allowed: int) -> None:
    """`tensor` has one of the numbers of dimensions `allowed`."""
    require(
        tensor.dim() in allowed,
        f"{name} has {tensor.dim()} dimensions {tuple(tensor.shape)}, allowed: {', '.join(map(str, allowed))}",
    )


def require_shape(name: str, tensor: torch.Tensor, *allowed: tuple[int, ...]) -> None:
    """`tensor` has one of the shapes `allowed`."""
    shapes = " or ".join(map(str, dict.fromkeys(allowed)))
    require(tuple(tensor.shape) in allowed, f"{name} has shape {tuple(tensor.shape)}, needed: {shapes}")


def require_range(name: str, value: float, low: float, high: float) -> None:
    """``low <= value <= high``."""
    require(low <= value <= high, f"{name} is {value}, allowed: {low} to {high}")


def require_indices(name: str, tensor: torch.Tensor, size: int) -> None:
    """Every element of the integer tensor lies in ``[0, size)``."""
    if tensor.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(tensor))
    require(low >= 0 and high < size, f"{name} holds values from {low} to {high}, allowed: 0 to {size - 1}")


def require_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """`value` is one of `allowed`."""
    if value not in allowed:
        raise ConstraintError(f"{name} is {value!r}, allowed: {', '.join(map(repr, allowed))}")


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the data type that kernels accumulate in: float32, or float64 if it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _list(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in found.items())

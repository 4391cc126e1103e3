"""Numerical conventions that all operators share."""

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of ``dtype`` are summed and exponentiated: float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32

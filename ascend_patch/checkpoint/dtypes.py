"""The dtypes of weights, and their names."""

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""The dtypes of weights that can be read and written."""


def dtype_name(dtype: torch.dtype) -> str:
    """As Hugging Face's config.json has it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The one of :data:`DTYPES` that :func:`dtype_name` names so.

    Raises:
        LookupError: there is none.
    """
    return {dtype_name(dtype): dtype for dtype in DTYPES}[name]

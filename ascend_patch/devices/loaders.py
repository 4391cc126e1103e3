"""``DataLoader`` with random numbers of its own, so that making one leaves the host's generator as it is.

PyTorch draws the seed of a loader's workers from the host's generator. A resumed run restores that generator and then
makes its loaders: from there on it would draw other numbers than a run that was never interrupted.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader


def with_own_generator(init: Callable) -> Callable:
    """``DataLoader.__init__`` that makes a generator where none is given."""

    @functools.wraps(init)
    def init_with_generator(self: DataLoader, *args: Any, **kwargs: Any) -> None:
        arguments = inspect.signature(init).bind(self, *args, **kwargs).arguments
        if arguments.get("generator") is None:
            arguments["generator"] = torch.Generator().manual_seed(torch.initial_seed())
        init(**arguments)

    return init_with_generator

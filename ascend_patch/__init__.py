"""ascend_patch: run unmodified NVIDIA Megatron-LM on Ascend NPUs, and check such a run on a GPU or a CPU.

Importing this package does nothing. :mod:`ascend_patch.adaptor` activates it; ``ASCEND_PATCH=1`` makes
PyTorch do that by itself at the end of ``import torch``.
"""

__version__ = "0.1.0"

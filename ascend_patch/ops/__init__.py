"""Operators of a Mixtral training step: one package each, named after the operator.

``ops/<operator>/__init__.py`` holds the public function with its contract, ``reference.py`` the plain PyTorch
implementation that serves as documentation and oracle, ``torch.py`` the portable and fast one, and
``npu.py``, where there is one, the Ascend kernels. :mod:`ascend_patch.ops.registry` chooses between them, and counts
what ran.
Nothing here knows Megatron.

Errors in the contracts are largest absolute deviations from a float64 evaluation, relative to its largest
entry.
"""

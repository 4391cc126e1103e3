"""The explicit door: ``import ascend_patch.adaptor`` activates, whatever ``ASCEND_PATCH`` says.

The only module of the package whose import has an effect. It must come before the first import of Megatron.
"""

from ascend_patch.activation import activate

activate()

"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.swiglu.reference import swiglu

__all__ = ["swiglu"]

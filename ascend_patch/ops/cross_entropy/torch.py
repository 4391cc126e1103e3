"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.cross_entropy.reference import cross_entropy

__all__ = ["cross_entropy"]

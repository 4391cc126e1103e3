"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.adam.reference import adam_step

__all__ = ["adam_step"]

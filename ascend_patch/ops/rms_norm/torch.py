"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.rms_norm.reference import rms_norm

__all__ = ["rms_norm"]

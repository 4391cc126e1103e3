"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.rotary.reference import apply_rotary, apply_rotary_thd

__all__ = ["apply_rotary", "apply_rotary_thd"]

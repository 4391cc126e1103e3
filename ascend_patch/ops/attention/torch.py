"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.attention.reference import attention, attention_thd

__all__ = ["attention", "attention_thd"]

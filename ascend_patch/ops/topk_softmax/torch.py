"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.topk_softmax.reference import topk_softmax

__all__ = ["topk_softmax"]

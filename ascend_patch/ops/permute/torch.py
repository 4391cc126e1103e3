"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.permute.reference import permute, sort_chunks, unpermute

__all__ = ["permute", "sort_chunks", "unpermute"]

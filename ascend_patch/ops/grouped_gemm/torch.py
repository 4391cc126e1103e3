"""The reference, until a faster portable variant stands here."""

from ascend_patch.ops.grouped_gemm.reference import grouped_gemm

__all__ = ["grouped_gemm"]

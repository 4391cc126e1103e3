"""Sorting tokens by expert and back, and reordering whole chunks of them between ranks.

Same results as ``permute``, ``unpermute`` and ``sort_chunks_by_idxs`` of
``megatron.core.transformer.moe.moe_utils`` without ``fused`` and ``drop_and_pad``.
"""

from collections.abc import Sequence

from torch import Tensor

from ascend_patch.ops.registry import run


def permute(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out_tokens: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Copy every token once per expert it is routed to, in the order of the experts.

    Args:
        tokens: ``[T, H]``, any dtype.
        routing_map: ``[T, E]`` bool, True where token and expert meet.
        probs: ``[T, E]`` or None.
        num_out_tokens: ``M``, the number of True entries of ``routing_map``. As upstream, fewer cut the
            result off, and more continue it with the False entries in the same order.

    Returns:
        ``(permuted [M, H], permuted_probs [M] or None, sorted_indices [M])``; the copies for expert 0 come first,
        each expert's in the order of the tokens. ``sorted_indices`` is for :func:`unpermute` alone: in the
        ``reference`` and ``torch`` variants ``sorted_indices[m]`` is the token that row ``m`` copies (int64), in
        ``npu`` it is the row of the ``m``-th copy, those of token 0 first (int32).

    Gradients flow to ``tokens`` and ``probs``, are deterministic, and are summed over a token's copies in
    float32.

    Raises:
        ValueError: the shapes do not fit.
    """
    if tokens.dim() != 2 or routing_map.dim() != 2 or routing_map.shape[0] != tokens.shape[0]:
        raise ValueError(
            f"permute: tokens has shape {tuple(tokens.shape)}, routing_map {tuple(routing_map.shape)}; "
            "allowed are [T, H] and [T, E]."
        )
    if probs is not None and probs.shape != routing_map.shape:
        raise ValueError(
            f"permute: probs has shape {tuple(probs.shape)}, routing_map {tuple(routing_map.shape)}; they must agree."
        )
    return run("permute", "permute", tokens, routing_map, probs, num_out_tokens)


def unpermute(
    permuted: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
) -> Tensor:
    """Add up the copies of every token, the inverse of :func:`permute`.

    Args:
        permuted: ``[M, H]``, floating point.
        sorted_indices: ``[M]``, from :func:`permute`.
        restore_shape: ``(T, H)``.
        probs: ``[T, E]`` or None; each copy is multiplied by its probability first. Needs ``routing_map``.
        routing_map: ``[T, E]`` bool, the one given to :func:`permute`, with exactly ``M`` True entries; only the
            ``npu`` variant needs it without ``probs``.

    Returns:
        ``[T, H]`` in the dtype of ``permuted``; zero for a token without copies. Sums run in float32 and are
        rounded once, where upstream rounds after each addition.

    Gradients flow to ``permuted`` and ``probs`` and are deterministic.

    Raises:
        ValueError: the shapes do not fit, or ``probs`` came without ``routing_map``.
    """
    if permuted.dim() != 2 or len(restore_shape) != 2 or restore_shape[1] != permuted.shape[1]:
        raise ValueError(
            f"unpermute: permuted has shape {tuple(permuted.shape)}, restore_shape is {tuple(restore_shape)}; "
            "allowed are [M, H] and (T, H)."
        )
    if sorted_indices.shape != permuted.shape[:1]:
        raise ValueError(
            f"unpermute: sorted_indices has shape {tuple(sorted_indices.shape)}, permuted {tuple(permuted.shape)}; "
            "there must be one index per row."
        )
    if probs is not None and routing_map is None:
        raise ValueError("unpermute: probs needs the routing_map that was given to permute.")
    return run("permute", "unpermute", permuted, sorted_indices, restore_shape, probs, routing_map)


def sort_chunks(
    x: Tensor,
    split_sizes: Sequence[int] | Tensor,
    sorted_idxs: Sequence[int] | Tensor,
    probs: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cut ``x`` (and ``probs``) along the first dimension and put the chunks in a new order.

    Args:
        x: ``[T, ...]``.
        split_sizes: ``n`` non-negative integers that add up to ``T``, as a list or an integer tensor on the
            CPU.
        sorted_idxs: ``n`` integers, a permutation; chunk ``sorted_idxs[i]`` comes ``i``-th.
        probs: ``[T]`` or None, reordered in the same way.

    Returns:
        ``(x, probs)`` in the new order; possibly the inputs themselves where ``sorted_idxs`` is ascending.
    """
    sizes = split_sizes.tolist() if isinstance(split_sizes, Tensor) else list(split_sizes)
    order = sorted_idxs.tolist() if isinstance(sorted_idxs, Tensor) else list(sorted_idxs)
    if sorted(order) != list(range(len(sizes))) or sum(sizes) != x.shape[0]:
        raise ValueError(
            f"sort_chunks: the chunk sizes {sizes} must add up to {x.shape[0]} and the order {order} "
            "must name each chunk once."
        )
    return run("permute", "sort_chunks", x, sizes, order, probs)

"""Scaled dot product attention: grouped queries, causal and sliding window masks, packed sequences."""

from torch import Tensor

from ascend_patch.ops.registry import run

Window = tuple[int, int]
"""(left, right): how many keys before and after its own position a query sees; -1 means all of them."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool,
    window: Window | None = None,
    dropout_p: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * query @ key.T) @ value`` for every head, in Megatron's ``sbhd`` layout.

    Args:
        query: ``[sq, b, np, hn]``, floating point, any strides.
        key: ``[sk, b, ng, hn]``, ``np`` a multiple of ``ng``; query head ``i`` attends to key head
            ``i * ng // np``.
        value: ``[sk, b, ng, hv]``.
        scale: multiplies the scores, usually ``1 / sqrt(hn)``.
        causal: a query sees no later key. Positions are aligned at the end: query ``i`` is at
            ``i + sk - sq``.
        window: sliding window in the same positions, on top of ``causal``; Mistral 7B's is ``(4095, 0)``.
        dropout_p: probability with which an attention weight is dropped, drawn from the current generator.
        mask: bool, broadcastable to ``[b, np, sq, sk]``, True where a query must not see a key (Megatron's
            meaning).

    Returns:
        ``[sq, b, np * hv]`` in the dtype of ``query``. A query that sees no key gets zeros.

    Gradients flow to ``query``, ``key`` and ``value`` and are deterministic. Scores and weights accumulate in
    float32; the relative error against float64 stays below 1e-5 (float32) and 2e-2 (bfloat16).

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_sbhd("attention", query, key, value)
    return run(
        "attention",
        "attention",
        query,
        key,
        value,
        scale=scale,
        causal=causal,
        window=window,
        dropout_p=dropout_p,
        mask=mask,
    )


def attention_thd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_kv: Tensor,
    *,
    scale: float,
    causal: bool,
    window: Window | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """:func:`attention` within each of the sequences packed into one (``thd`` layout).

    Args:
        query: ``[T, np, hn]``; sequence ``i`` is the rows from ``cu_seqlens_q[i]`` to ``cu_seqlens_q[i +
            1]``.
        key: ``[T', ng, hn]``, value: ``[T', ng, hv]``, cut by ``cu_seqlens_kv``.
        cu_seqlens_q, cu_seqlens_kv: ``[n + 1]`` integers, ascending from 0, of equal length.

    Returns:
        ``[T, np * hv]``; rows beyond the last sequence are zero.

    Raises:
        ValueError: the shapes do not fit.
    """
    if query.dim() != 3 or key.dim() != 3 or value.dim() != 3:
        raise ValueError(_shapes("attention_thd", query, key, value) + "all three must be [T, heads, head_dim].")
    if cu_seqlens_q.shape != cu_seqlens_kv.shape:
        raise ValueError(
            f"attention_thd: cu_seqlens_q and cu_seqlens_kv name {len(cu_seqlens_q) - 1} and "
            f"{len(cu_seqlens_kv) - 1} sequences; there must be as many of both."
        )
    _check_heads("attention_thd", query, key, value)
    return run(
        "attention",
        "attention_thd",
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_kv,
        scale=scale,
        causal=causal,
        window=window,
        dropout_p=dropout_p,
    )


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """:func:`attention` and the statistics by which parts of it, over parts of the keys, are put together.

    Autograd does not see through it: :func:`attention_backward` is its gradient.

    Args:
        query, key, value, scale, causal: as for :func:`attention`. Every query must see a key: causal queries are at
            most as many as keys.

    Returns:
        The output ``[sq, b, np * hv]`` in the dtype of ``query``, and the logarithm of the sum of the exponentials of
        each query's scores, ``[b, np, sq]`` in float32 (float64 for float64).

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_part("attention_forward", query, key, value, causal)
    return run("attention", "attention_forward", query, key, value, scale=scale, causal=causal)


def attention_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    *,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What one part of the keys contributes to the gradients of attention over all of them.

    Args:
        grad_output: ``[sq, b, np * hv]``, the gradient of ``output``.
        query, key, value, scale, causal: as for :func:`attention_forward`.
        output, lse: the output and the statistics of the whole, over the other parts' keys too.

    Returns:
        The gradients in the dtypes of ``query``, ``key`` and ``value``; that of ``query`` is a summand, one of as many
        as there are parts.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_part("attention_backward", query, key, value, causal)
    for name, t in (("grad_output", grad_output), ("output", output)):
        expected = (*query.shape[:2], query.shape[2] * value.shape[3])
        if t.shape != expected:
            raise ValueError(f"attention_backward: {name} has shape {tuple(t.shape)}; it must be {expected}.")
    expected = (query.shape[1], query.shape[2], query.shape[0])
    if lse.shape != expected:
        raise ValueError(f"attention_backward: lse has shape {tuple(lse.shape)}; it must be {expected}.")
    return run(
        "attention",
        "attention_backward",
        grad_output,
        query,
        key,
        value,
        output,
        lse,
        scale=scale,
        causal=causal,
    )


def _check_part(function: str, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> None:
    _check_sbhd(function, query, key, value)
    if key.shape[0] == 0 or (causal and query.shape[0] > key.shape[0]):
        raise ValueError(_shapes(function, query, key, value) + "every query must see a key.")


def _check_sbhd(function: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(_shapes(function, query, key, value) + "all three must be [s, b, heads, head_dim].")
    if query.shape[1] != key.shape[1]:
        raise ValueError(_shapes(function, query, key, value) + "the batch sizes differ.")
    _check_heads(function, query, key, value)


def _check_heads(function: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(_shapes(function, query, key, value) + "key and value may differ in head_dim only.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(_shapes(function, query, key, value) + "query and key must have the same head_dim.")
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(_shapes(function, query, key, value) + "query heads must be a multiple of key heads.")


def _shapes(function: str, query: Tensor, key: Tensor, value: Tensor) -> str:
    shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
    return f"{function}: query, key and value have shapes {shapes}; "

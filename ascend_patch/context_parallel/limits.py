"""What each communication type takes; what it does not is said by the names of upstream's flags."""

import math
from collections.abc import Sequence

from ascend_patch.engine.errors import AscendPatchError

TYPES = ("p2p", "a2a", "allgather", "a2a+p2p")
"""The values of ``--cp-comm-type``."""
WHOLE_SEQUENCE = ("a2a", "allgather")
"""Those that take sliding windows and packed sequences."""


def communication_type(name: str | None) -> str:
    """One of :data:`TYPES`; upstream's configuration also writes ``all_gather``, and None for its default ``p2p``.

    Raises:
        AscendPatchError: there is no such type.
    """
    found = "p2p" if name is None else name.replace("_", "").lower()
    if found not in TYPES:
        raise AscendPatchError(f"--cp-comm-type {name} was given; it takes {', '.join(TYPES)}.")
    return found


def check_sequence(length: int, ranks: int) -> None:
    """Raise :class:`AscendPatchError` for a sequence that upstream does not cut into equal pieces."""
    if length % (2 * ranks):
        raise AscendPatchError(
            f"--seq-length {length} with --context-parallel-size {ranks}: each rank gets two pieces, so that the "
            f"length must be a multiple of {2 * ranks}. Change one of them."
        )


def check_hierarchy(ranks: int, sizes: Sequence[int] | None) -> None:
    """Raise :class:`AscendPatchError` unless ``a2a+p2p`` can be built from the groups of these sizes."""
    flag = "--hierarchical-context-parallel-sizes"
    if sizes is None:
        raise AscendPatchError(
            f"--cp-comm-type a2a+p2p needs {flag}: two numbers, the ranks of a group that exchange heads (a2a) and the "
            f"number of such groups in a ring (p2p), whose product is --context-parallel-size {ranks}."
        )
    if len(sizes) != 2 or math.prod(sizes) != ranks:
        raise AscendPatchError(
            f"{flag} {' '.join(map(str, sizes))} was given with --context-parallel-size {ranks}; it takes two numbers, "
            "for a2a and for p2p, whose product is that size."
        )


def check_layer(
    name: str, ranks: int, hierarchy: Sequence[int] | None, heads: int, *, windowed: bool, dropout: float
) -> None:
    """Raise :class:`AscendPatchError` for a layer whose attention cannot be split like that.

    Args:
        name: one of :data:`TYPES`.
        ranks: the context parallel size, more than 1.
        hierarchy: sizes of the groups of ``a2a+p2p``, or None.
        heads: query heads of a tensor parallel rank.
        windowed: whether the layer has a sliding window.
        dropout: probability with which attention weights are dropped.
    """
    if dropout > 0.0:
        raise AscendPatchError(
            f"--attention-dropout {dropout} was given (0.1 if it was not) with --context-parallel-size {ranks}: "
            "dropping attention weights of a split sequence is not implemented. Use --attention-dropout 0."
        )
    if name == "a2a+p2p":
        check_hierarchy(ranks, hierarchy)
    sharing = {"a2a": ranks, "a2a+p2p": hierarchy[0] if hierarchy else ranks}.get(name, 1)
    if heads % sharing:
        flag = "--context-parallel-size" if name == "a2a" else "--hierarchical-context-parallel-sizes"
        raise AscendPatchError(
            f"--cp-comm-type {name} shares the heads between {sharing} ranks ({flag}), but a tensor parallel rank has "
            f"{heads} (--num-attention-heads by --tensor-model-parallel-size), which is no multiple of that. Use "
            "--cp-comm-type p2p or allgather, or other sizes."
        )
    if windowed and name not in WHOLE_SEQUENCE:
        raise AscendPatchError(
            f"--cp-comm-type {name} cannot slide a window (--window-size) over a sequence that goes round in pieces. "
            f"Use --cp-comm-type {' or '.join(WHOLE_SEQUENCE)}."
        )


def check_packed(name: str) -> None:
    """Raise :class:`AscendPatchError` unless this type takes packed sequences."""
    if name not in WHOLE_SEQUENCE:
        raise AscendPatchError(
            f"--cp-comm-type {name} takes no packed sequences, which --sft makes. Use --cp-comm-type "
            f"{' or '.join(WHOLE_SEQUENCE)}."
        )

"""Tensors that follow on each other in memory, taken for one: one launch instead of one for each."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor


def joined(rows: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """The same elements in fewer rows: those whose tensors follow on each other in every column become one.

    Args:
        rows: contiguous tensors; those of one row have as many elements as each other.

    Yields:
        Rows of one-dimensional views, by the address of their first tensors.
    """
    flat = [tuple(t.view(-1) for t in row) for row in rows]
    flat.sort(key=lambda row: row[0].data_ptr())
    for run in runs(flat, lambda before, row: all(map(adjacent, before, row))):
        yield tuple(span(column) for column in zip(*run, strict=True))


def runs[T](rows: Iterable[T], follows: Callable[[T, T], bool]) -> Iterator[list[T]]:
    """Cut the rows wherever one does not follow the one before it."""
    run: list[T] = []
    for row in rows:
        if run and not follows(run[-1], row):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def adjacent(before: Tensor, t: Tensor) -> bool:
    """Whether the one begins where the other ends, in the same storage and dtype."""
    return (
        t.dtype == before.dtype
        and t.storage_offset() == before.storage_offset() + before.numel()
        and t.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    )


def span(neighbours: Sequence[Tensor]) -> Tensor:
    """One flat view of them all."""
    first = neighbours[0]
    return first.as_strided((sum(t.numel() for t in neighbours),), (1,), first.storage_offset())

"""Tensors that follow on each other in memory."""

import torch

from ascend_patch.ops.neighbours import joined


def sizes(rows) -> list[int]:
    return [row[0].numel() for row in joined(rows)]


def test_neighbours_in_every_column_become_one():
    """In whatever order they come; the result is a view of what was given."""
    a, b = torch.arange(12.0), torch.arange(12, 24)
    rows = [(a[0:4].view(2, 2), b[2:6].view(2, 2)), (a[9:12], b[0:3]), (a[4:9], b[6:11])]
    found = list(joined(reversed(rows)))
    assert [row[0].tolist() for row in found] == [list(range(9)), [9, 10, 11]]
    assert [row[1].tolist() for row in found] == [list(range(14, 23)), [12, 13, 14]]
    found[0][0].zero_()
    assert a.tolist() == [0.0] * 9 + [9.0, 10.0, 11.0]


def test_what_is_no_neighbour():
    a = torch.zeros(10)
    assert sizes([(a[0:3],), (a[4:6],)]) == [3, 2]  # a gap
    assert sizes([(a[0:3],), (a[2:6],)]) == [3, 4]  # an overlap
    assert sorted(sizes([(torch.zeros(3),), (torch.zeros(4),)])) == [3, 4]  # two storages
    assert sizes([(a[0:3], a[0:3]), (a[3:5], a[5:7])]) == [3, 2]  # in one column only
    assert sizes([]) == []

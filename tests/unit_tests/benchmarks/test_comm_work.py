"""The table and the picture of a step's collectives, from records made up here; the routing that both sides have."""

import torch

from ascend_sim.timeline import Event
from benchmarks import comm_figure
from benchmarks.comm_work import table, work
from benchmarks.workers.comm_work import even_logits

EP, MP = "expert_model_parallel (8)", "model_parallel (8)"
LAUNCH = Event("launch", 1, name="mul")


def collective(sequence, scope="layer", name="all_to_all_single", group=EP, moved=2**10):
    return Event("collective", 1, 0, group, sequence, scope, name, group, moved)


def wait(sequence, group=EP):
    return Event("wait", 1, 0, group, sequence)


def record(hidden):
    """Four collectives of layers, of which so many hide behind two launches, and one of the rest that does not."""
    events = [LAUNCH]
    for sequence in range(4):
        events += [collective(sequence), *[LAUNCH] * 2 * (sequence < hidden), wait(sequence), LAUNCH]
    return [*events, collective(9, "", "all_reduce", MP, 4), wait(9, MP), LAUNCH]


def cells(text, title):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{title} ")]
    return line.strip().removeprefix(f"{title} ").split()


def test_layers_are_shown_for_one():
    text = table("EP8", {"stock": work(record(0)), "ours": work(record(3))}, layers=2)
    assert cells(text, "all_to_all_single, expert_model_parallel (8)") == [
        "2",
        "2.0",
        "0.0",
        "0",
        "2",
        "2.0",
        "1.5",
        "2",
    ]
    assert cells(text, "all_reduce, model_parallel (8)") == ["1", "0.0", "0.0", "0"] * 2
    assert cells(text, "the whole step") == ["5", "4.0", "0.0", "0", "5", "4.0", "3.0", "2"]
    assert text.endswith("of each group and in total: met")


def test_more_bytes_than_upstream():
    more = [collective(0), wait(0), collective(1, moved=2**12), wait(1)]
    text = table("EP8", {"stock": work(record(0)), "ours": work(more)}, layers=1)
    assert cells(text, "all_reduce, model_parallel (8)") == ["1", "0.0", "0.0", "0", "0", "0.0", "0.0", "0"]
    assert text.endswith("in total: MISSED (expert_model_parallel (8) in layers, total)")


def test_one_kind_may_stand_for_another():
    stock = [collective(0, name="all_reduce", moved=3), wait(0), collective(1, group=MP, moved=9), wait(1, MP)]
    ours = [collective(0, name="all_gather", moved=2), wait(0)]
    sides = {"stock": work(stock), "ours": work(ours)}
    assert table("EP8", sides, layers=1).endswith("in total: met")
    sides["ours"] = work([*ours, collective(1, moved=2), wait(1)])
    assert table("EP8", sides, layers=1).endswith("in total: MISSED (expert_model_parallel (8) in layers)")


def test_a_layout_without_stock():
    text = table("CP4", {"ours": work(record(1))}, layers=2)
    assert "stock  " not in text and "met" not in text
    assert cells(text, "the whole step") == ["5", "4.0", "1.0", "2"]


def test_a_picture_has_a_lane_for_each_stream_and_group(tmp_path):
    events = [LAUNCH, LAUNCH._replace(stream=2), *record(1)]
    bars = comm_figure.bars(events)
    assert {bar.lane for bar in bars} == {
        "computation",
        "computation, stream 1",
        EP,
        MP,
    }
    first, *others = [bar for bar in bars if bar.lane == EP]
    assert (first.left, first.width) == (3, 2)
    waits = [bar for bar in bars if bar.color == comm_figure.WAITING]
    assert [bar.left for bar in waits[:3]] == [bar.left for bar in others]
    comm_figure.draw("EP8", {"stock": record(0), "ours": events}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_tokens_in_equal_shares():
    logits = torch.randn(3, 8, 4, requires_grad=True)
    even = even_logits(logits)
    assert even.shape == logits.shape and even.dtype == logits.dtype
    chosen = even.view(24, 4).topk(2).indices
    assert chosen[5].tolist() == [1, 2] and chosen.flatten().bincount().tolist() == [12] * 4
    weights = torch.randn_like(even)
    (even * weights).sum().backward()
    assert torch.equal(logits.grad, weights)

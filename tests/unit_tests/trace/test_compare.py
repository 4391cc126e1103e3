"""Runs of one computation in different layouts do not differ; one changed number is found where it is."""

import math
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.trace.compare import amounts, compare
from ascend_patch.trace.store import BACKWARD, DIRECTIONS, FORWARD, GRADIENT, Digest
from tests.unit_tests.trace.runs import EXPERTS, LAYERS, SAMPLES, Computation, digest_of, layout

finite = st.integers(-(10**9), 10**9).map(lambda number: number / 1000)


@st.composite
def layouts(draw: st.DrawFn):
    data = draw(st.sampled_from((1, 2, 4)))
    tensor = draw(st.sampled_from((1, 2, 4)))
    return layout(
        micro_batch_size=draw(st.sampled_from([size for size in (1, 2, 4, 8) if SAMPLES % (size * data) == 0])),
        data=data,
        tensor=tensor,
        expert_tensor=tensor,
        pipeline=draw(st.sampled_from((1, 2))),
        virtual=draw(st.sampled_from((1, 2))),
        expert=draw(st.sampled_from([size for size in (1, 2, 4) if data % size == 0])),
        distributed_optimizer=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=60)
@given(layouts(), layouts(), st.integers(0, 2**31))
def test_layouts_do_not_differ(one, other, seed) -> None:
    computation = Computation(seed)
    result = compare(computation.trace(one), computation.trace(other))
    assert result.differences == ()
    assert result.largest < 1e-9
    assert result.only_a == result.only_b == ()
    names = {name for _, name in computation.outputs} | computation.gradients.keys()
    assert result.compared >= len(names) + len(computation.outputs) // 2
    assert (result.tolerance is None) == (one == other)


@settings(deadline=None, max_examples=60)
@given(layouts(), layouts(), st.integers(0, 2**31), st.data())
def test_a_changed_number_is_found(one, other, seed, data) -> None:
    """What comes later differs as well, as it would in a real run; an expert does not see the others of its layer."""
    sound, faulty = Computation(seed), Computation(seed)
    if data.draw(st.booleans()):
        places = list(faulty.outputs)
        index = data.draw(st.integers(0, len(places) - 1))
        sample = data.draw(st.integers(0, SAMPLES - 1))
        direction, name = places[index]
        module, _, expert = name.partition("[")
        for later in places[index:]:
            if later == places[index] or not (expert and later[1].startswith(f"{module}[")):
                faulty.outputs[later][sample, 0, 0] += 5
    else:
        direction, sample = GRADIENT, 0
        name = data.draw(st.sampled_from(list(faulty.gradients)))
        faulty.gradients[name][-1] += 5
    result = compare(sound.trace(one), faulty.trace(other))
    first = result.differences[0]
    assert first.place.direction == direction
    if direction != BACKWARD:  # what comes later comes earlier there
        assert first.place.name == name
    assert direction == GRADIENT or first.place.first_sample <= sample < first.place.first_sample + first.place.samples
    directions = [DIRECTIONS.index(one.place.direction) for one in result.differences]
    assert directions == sorted(directions)
    if one == other:
        assert first.ranks_a == first.ranks_b == (first.place.rank,)


def test_backward_begins_at_the_last_stage() -> None:
    sound, faulty = Computation(1), Computation(1)
    for layer in range(LAYERS):
        faulty.outputs[BACKWARD, f"decoder.layers.{layer}.linear_proj"] += 1
    spread = layout(pipeline=2, virtual=2)
    first = compare(sound.trace(spread), faulty.trace(layout())).differences[0]
    assert first.place.name == f"decoder.layers.{LAYERS - 1}.linear_proj"
    assert (first.ranks_a, first.ranks_b) == ((1,), (0,))


def test_swapped_experts_have_the_same_sum() -> None:
    sound, faulty = Computation(2), Computation(2)
    names = [f"decoder.layers.2.mlp.experts.linear_fc1[{e}]" for e in range(EXPERTS)]
    for e, name in enumerate(names):
        faulty.outputs[FORWARD, name] = sound.outputs[FORWARD, names[(e + EXPERTS // 2) % EXPERTS]]
    for one in (layout(), layout(data=2, expert=2)):
        first = compare(sound.trace(one), faulty.trace(layout(data=2, expert=2))).differences[0]
        assert (first.place.name, first.ranks_b) == (names[0], (0,))


def test_terms_of_a_sum_are_added() -> None:
    """What a row parallel layer of experts returns, before the dispatcher adds it up."""
    terms = numpy.random.default_rng(3).standard_normal((2, 40))
    whole, parts = layout(), layout(tensor=2, expert_tensor=2)
    name = "decoder.layers.0.mlp.experts.linear_fc2[0]"

    def traces(arrays, spread, placement):
        found = Computation(4).trace(spread)
        return [
            replace(rank, records=(rank.records[0]._replace(name=name, placement=placement, digest=digest_of(array)),))
            for rank, array in zip(found, arrays, strict=True)
        ]

    one = traces([terms.sum(0)], whole, ())
    assert compare(one, traces(terms, parts, ("partial",))).differences == ()
    assert compare(one, traces(terms, parts, ())).differences != ()
    terms[1, 7] += 1
    assert compare(one, traces(terms, parts, ("partial",))).differences != ()


def test_tolerance() -> None:
    sound, faulty = Computation(5), Computation(5)
    faulty.outputs = {place: values * (1 + 1e-3) for place, values in faulty.outputs.items()}
    one = layout()
    assert compare(sound.trace(one), faulty.trace(one), 2e-3).differences == ()
    found = compare(sound.trace(one), faulty.trace(one), 1e-4)
    assert len(found.differences) == len(sound.outputs) * SAMPLES
    assert found.largest == pytest.approx(1e-3, rel=1e-2)


def test_what_cannot_be_compared() -> None:
    computation = Computation(6)
    one = computation.trace(layout())
    with pytest.raises(AscendPatchError, match="8 samples in A and 4 in B. Trace runs with the same --global-batch"):
        compare(one, [replace(rank, layout=replace(rank.layout, micro_batches=4)) for rank in one])
    other = [replace(rank, records=tuple(r._replace(name=f"other.{r.name}") for r in rank.records)) for rank in one]
    with pytest.raises(AscendPatchError, match="Nothing in step 1 has the same name"):
        compare(one, other)


arrays = st.lists(finite, min_size=1, max_size=20).map(numpy.array)


@given(arrays, st.data())
def test_amounts_are_bounded_by_the_tensors_difference(a, data) -> None:
    b = numpy.array(data.draw(st.lists(finite, min_size=a.size, max_size=a.size)))
    found = amounts(digest_of(a), digest_of(b))
    largest = max(numpy.linalg.norm(a), numpy.linalg.norm(b))
    bound = numpy.linalg.norm(a - b) / largest if largest else 0.0
    assert found["count"] == 0
    assert found["mean"] <= bound + 1e-9
    assert found["norm"] <= bound + 1e-9
    assert amounts(digest_of(b), digest_of(a)) == found


def test_amounts_of_what_is_not_a_number() -> None:
    number, none = Digest(2, 1.0, 1.0, 1.0), Digest(2, math.nan, math.nan, math.nan)
    assert max(amounts(none, none).values()) == 0
    assert amounts(number, none)["norm"] == math.inf
    infinite = Digest(2, math.inf, math.inf, math.inf)
    assert max(amounts(infinite, infinite).values()) == 0
    assert max(amounts(infinite, number).values()) == math.inf
    assert max(amounts(Digest(0, 0, 0, 0), Digest(0, 0, 0, 0)).values()) == 0

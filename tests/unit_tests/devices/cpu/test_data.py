"""DataLoader on the cpu device."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader

pytestmark = pytest.mark.usefixtures("cpu_device")


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_memory_is_plain_memory(workers):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*pin_memory")
        loaders = (
            DataLoader(torch.arange(6.0), batch_size=3, pin_memory=True, num_workers=workers),
            DataLoader(torch.arange(6.0), 3, False, None, None, workers, None, True),
        )
        for loader in loaders:
            assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"shuffle": True}])
def test_loading_does_not_disturb_the_random_numbers_of_the_device(options):
    """A resumed run restores the generator, then makes its loaders; dropout has to go on where it was."""
    torch.manual_seed(11)
    expected = torch.rand(3, device="cuda")
    torch.manual_seed(11)
    list(DataLoader(torch.arange(6.0), **options))
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_shuffling_follows_the_seed_and_differs_between_epochs():
    def epochs(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        loader = DataLoader(torch.arange(50), shuffle=True)
        return [[int(item) for item in loader] for _ in range(2)]

    first, again, other = epochs(3), epochs(3), epochs(4)
    assert first == again != other
    assert first[0] != first[1]
    assert sorted(first[0]) == list(range(50))


def test_a_generator_of_the_caller_is_used():
    orders = [
        [int(item) for item in DataLoader(torch.arange(50), shuffle=True, generator=torch.Generator().manual_seed(s))]
        for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]

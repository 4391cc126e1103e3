"""Training samples of instruction data: tokens, shifted labels, loss mask, and where conversations begin."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ascend_patch.data.templates import Example


class Sample(NamedTuple):
    """One sample of ``s`` positions, as a GPT is trained on it.

    Attributes:
        tokens: ``[s]`` int64, what the model reads.
        labels: ``[s]`` int64, the token that follows at each position; any valid id where it is not learned.
        loss_mask: ``[s]`` float32, 1 where the label is learned, else 0.
        starts: ``[k]`` int32, where each conversation begins, and the padding if there is any; the first is 0.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    starts: np.ndarray

    @property
    def boundaries(self) -> np.ndarray:
        """``[k + 1]`` int32: :attr:`starts` and the end, the cumulated lengths that packed attention takes."""
        return np.append(self.starts, np.int32(len(self.tokens)))

    @property
    def position_ids(self) -> np.ndarray:
        """``[s]`` int64, counted from the start of each conversation."""
        return np.arange(len(self.tokens)) - np.repeat(self.starts, np.diff(self.boundaries)).astype(np.int64)

    def hidden(self, across_conversations: bool) -> np.ndarray:
        """Bool ``[s, s]``, True where a position must not see another: a later one, and, with
        ``across_conversations``, one of another conversation."""
        length = len(self.tokens)
        hidden = ~np.tri(length, dtype=bool)
        if across_conversations:
            conversation = np.repeat(np.arange(len(self.starts)), np.diff(self.boundaries))
            hidden |= conversation[:, None] != conversation[None, :]
        return hidden


def positions(length: int) -> int:
    """How many positions a conversation of ``length`` tokens takes: the last token is only ever a label."""
    return max(length - 1, 0)


def padded[T: (int, np.ndarray)](length: T, multiple: int) -> T:
    """The next multiple, which may be ``length`` itself; of each element, if it is an array."""
    return -(length // -multiple) * multiple


def make_sample(examples: Sequence[Example], length: int, filler: int, multiple: int = 1) -> Sample:
    """Put conversations one after the other, cut what does not fit and fill the rest.

    The label of a position is the next token of the same conversation, so that none is ever asked for the first
    token of another.

    Args:
        examples: the conversations.
        length: positions of the sample.
        filler: id of the padding and of labels that are not learned. Its loss is masked and, attention being
            causal, no conversation sees it: any valid id does.
        multiple: each conversation is padded to a multiple of so many positions, which ``length`` must be.
    """
    tokens, labels = np.full(length, filler, np.int64), np.full(length, filler, np.int64)
    mask = np.zeros(length, np.float32)
    starts, at = [], 0
    for example in examples:
        taken = min(positions(len(example.ids)), length - at)
        if taken <= 0:
            continue
        place, learned = slice(at, at + taken), example.learned[1 : taken + 1]
        tokens[place] = example.ids[:taken]
        labels[place] = np.where(learned, example.ids[1 : taken + 1], filler)
        mask[place] = learned
        starts.append(at)
        at += padded(taken, multiple)
    if at < length:
        starts.append(at)
    return Sample(tokens, labels, mask, np.array(starts, np.int32))

"""Which keys a query sees in npu_fusion_attention: sparse modes and masks, with their constraints."""

import functools
from dataclasses import dataclass

import torch

from ascend_sim.errors import ConstraintError, NotModelled, require
from ascend_sim.kernels.checks import require_choice, require_dtype, require_shape

#: Modes whose mask is one triangle that stands for any length.
COMPRESSED_MODES = (2, 3, 4)
_COMPRESSED = 2048  # side of that triangle


@dataclass(frozen=True)
class Visible:
    """Key ``j`` is visible to query ``i`` where ``lower <= j - i <= upper`` (None: no bound) and `hidden` is not True.

    Attributes:
        lower: Lowest diagonal of the band.
        upper: Highest diagonal of the band.
        hidden: Bool, ``[batch or 1, heads or 1, queries, keys]``, or None.
        empty_rows: Whether a query may see no key at all; its output and gradient are then zero.
    """

    lower: int | None = None
    upper: int | None = None
    hidden: torch.Tensor | None = None
    empty_rows: bool = False

    def keys(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Range of keys, out of `length`, that any of the queries ``start … stop - 1`` may see by the band."""
        first = 0 if self.lower is None else min(max(0, start + self.lower), length)
        last = length if self.upper is None else min(max(first, stop + self.upper), length)
        return first, last

    def hidden_block(self, queries: tuple[int, int], keys: tuple[int, int]) -> torch.Tensor | None:
        """Bool ``[1 or batch, 1 or heads, queries, keys]``: what is hidden in a block, None for nothing."""
        rows = torch.arange(*queries).unsqueeze(1)
        distance = torch.arange(*keys).unsqueeze(0) - rows
        outside = None
        if self.upper is not None and keys[1] - 1 - queries[0] > self.upper:
            outside = distance > self.upper
        if self.lower is not None and keys[0] - (queries[1] - 1) < self.lower:
            below = distance < self.lower
            outside = below if outside is None else outside | below
        explicit = None if self.hidden is None else self.hidden[..., queries[0] : queries[1], keys[0] : keys[1]]
        if outside is None:
            return explicit
        outside = outside.view(1, 1, *outside.shape)
        return outside if explicit is None else explicit | outside


@dataclass(frozen=True)
class MaskArguments:
    """The arguments of npu_fusion_attention that say what is visible."""

    atten_mask: torch.Tensor | None
    sparse_mode: int
    pre_tockens: int
    next_tockens: int
    inner_precise: int

    def visible(self, batch: int, heads: int, queries: int, keys: int) -> Visible:
        """What is visible in a batch of equally long sequences."""
        mode, mask = self._check(), self.atten_mask
        if mode in COMPRESSED_MODES:
            return self._band(queries, keys, packed=False)
        if mask is None:
            return self._everything(queries, keys)
        shapes = (
            (batch, heads, queries, keys),
            (batch, 1, queries, keys),
            (1, 1, queries, keys),
            (queries, keys),
        )
        require_shape("atten_mask", mask, *shapes)
        hidden = mask.bool().view(-1, 1, queries, keys) if mask.dim() == 2 else mask.bool()
        return self._explicit(hidden, queries, keys)

    def visible_in_sequence(self, queries: int, keys: int, longest: tuple[int, int]) -> Visible:
        """What is visible in one of several packed sequences, of which the longest has `longest` queries and keys."""
        mode, mask = self._check(), self.atten_mask
        if mode in COMPRESSED_MODES:
            return self._band(queries, keys, packed=True)
        if mask is None:
            return self._everything(queries, keys)
        require_shape("atten_mask", mask, longest)
        return self._explicit(mask.bool()[None, None, :queries, :keys], queries, keys, packed=True)

    def _check(self) -> int:
        require_choice("inner_precise", self.inner_precise, (0, 1, 2))
        mode, mask = self.sparse_mode, self.atten_mask
        if mode in (5, 6, 7, 8):
            raise NotModelled(f"sparse_mode={mode} (prefix, or sequences cut over devices) is not modelled")
        if mode not in (0, 1, 2, 3, 4):
            raise ConstraintError(f"sparse_mode is {mode}, allowed: 0 to 8")
        if mask is None:
            require(mode == 0, f"atten_mask is None with sparse_mode {mode}: the device would attend to everything")
            return mode
        require_dtype("atten_mask", mask, (torch.bool, torch.uint8))
        if mode in COMPRESSED_MODES:
            require_shape("atten_mask", mask, (_COMPRESSED, _COMPRESSED))
            require(
                torch.equal(mask.bool(), _triangle()),
                f"atten_mask is not the upper triangle without diagonal that sparse_mode {mode} needs",
            )
        if mode in (0, 4):
            require(
                self.next_tockens >= -self.pre_tockens,
                f"pre_tockens {self.pre_tockens} and next_tockens {self.next_tockens} leave no band",
            )
        return mode

    def _band(self, queries: int, keys: int, packed: bool) -> Visible:
        """Modes 2 (triangle from the upper left), 3 (from the lower right) and 4 (band from the lower right)."""
        if self.sparse_mode == 2:
            return Visible(upper=0)
        shift = keys - queries
        if self.sparse_mode == 3:
            require(
                not packed or shift >= 0,
                f"a packed sequence has {queries} queries and {keys} keys, sparse_mode 3 needs at least as many keys",
            )
            return Visible(upper=shift, empty_rows=shift < 0)
        return Visible(shift - self.pre_tockens, shift + self.next_tockens, empty_rows=self._invalid_rows(packed))

    def _everything(self, queries: int, keys: int) -> Visible:
        require(
            self.pre_tockens >= queries and self.next_tockens >= keys,
            f"pre_tockens {self.pre_tockens} and next_tockens {self.next_tockens} are given without atten_mask: the "
            "device would attend to everything",
        )
        return Visible()

    def _explicit(self, hidden: torch.Tensor, queries: int, keys: int, packed: bool = False) -> Visible:
        if self.sparse_mode == 1:
            return Visible(hidden=hidden, empty_rows=self._invalid_rows(packed))
        band = Visible(-self.pre_tockens, self.next_tockens).hidden_block((0, queries), (0, keys))
        require(
            band is None or bool(hidden[band.expand_as(hidden)].all()),
            f"atten_mask leaves positions open outside of pre_tockens {self.pre_tockens}, next_tockens "
            f"{self.next_tockens}; with sparse_mode 0 both must say the same",
        )
        return Visible(-self.pre_tockens, self.next_tockens, hidden, self._invalid_rows(packed))

    def _invalid_rows(self, packed: bool) -> bool:
        return self.inner_precise == 2 and not packed


@functools.cache
def _triangle() -> torch.Tensor:
    return torch.ones(_COMPRESSED, _COMPRESSED, dtype=torch.bool).triu_(1)

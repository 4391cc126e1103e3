"""Values made of a tensor, made once instead of for each use: every layer gets the same positions and lengths."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class DerivedValues:
    """A cache by tensor, in which an entry lives as long as its tensor and until that is written to.

    Args:
        most: how many values are kept for one tensor, the latest used ones.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, t: Tensor, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make()`` returned for this tensor and ``key``; the value must not refer to ``t``.

        Nothing is kept for a tensor of inference mode, which does not say when it is written to.
        """
        if t.is_inference():
            return make()
        version = t._version
        known = self._entries.get(t)
        if known is None or known[0] != version:
            known = self._entries[t] = (version, OrderedDict())
        values = known[1]
        if key in values:
            values.move_to_end(key)
        else:
            values[key] = make()
            if len(values) > self._most:
                values.popitem(last=False)
        return values[key]


_host_copies = DerivedValues()


def host_list(t: Tensor) -> list[int]:
    """``t.tolist()`` of a one-dimensional tensor of integers.

    The first call for a tensor on a device waits for the device, later ones do not: packed sequences cost one such
    wait for each tensor of lengths and none for each layer.
    """
    return _host_copies.get(t, None, t.tolist)

"""What goes wrong with data."""

from ascend_patch.engine.errors import AscendPatchError


class DataError(AscendPatchError):
    """Data cannot be read, understood or written; the message says where and what to do.

    Raised for one record by a handler, without the place: the caller puts file and line in front.
    """

"""How an :class:`AscendPatchError` that ends a process is shown: one paragraph instead of a traceback a rank.

All ranks of a job usually fail alike. Rank 0 speaks at once; the others keep quiet until the launcher has had
the time to end them, and speak only if it has not, because then the failure is theirs alone.

An error of the communication between ranks keeps its traceback, and a paragraph that says what it means comes after it.
"""

import sys
import time
from types import TracebackType

from ascend_patch.config import rank
from ascend_patch.engine.errors import AscendPatchError, DeclarationError

#: How long a rank other than 0 waits for the launcher to end it, in seconds. torchrun looks ten times a second.
PATIENCE = 5.0

#: Of torch.distributed, which is not imported for this.
_COLLECTIVES = "torch.distributed.distributed_c10d"
_LOST_KINDS = ("DistStoreError", "DistNetworkError")
_LOST_TEXTS = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "connectFullMesh failed")
_UNREACHABLE = (
    "rank {rank} lost another rank{where}: {error}. Either that rank has ended, and the output of the rank that failed "
    "first has the cause, or it never came to this call, or the network between the nodes is down. "
    "--distributed-timeout-minutes is how long a rank waits. "
    "The same command goes on from the last checkpoint, if --load names the folder of --save."
)


def install() -> None:
    """Make it so in this process; idempotent. Other exceptions go to the hook that was there before."""
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)


def uninstall() -> None:
    """Put the previous hook back, unless somebody has replaced ours since."""
    if isinstance(sys.excepthook, _Hook):
        sys.excepthook = sys.excepthook.previous


class _Hook:
    def __init__(self, previous) -> None:
        self.previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        own = find(error)
        if own is None:
            self.previous(kind, error, traceback)
            if is_of_communication(error):
                said = str(error).partition("\n")[0].rstrip(".")
                where = waited_in(traceback)
                print(f"ascend_patch: {_UNREACHABLE.format(rank=rank(), where=where, error=said)}", file=sys.stderr)
            return
        if rank() != 0:
            time.sleep(PATIENCE)
        print(f"ascend_patch: {own}", file=sys.stderr, flush=True)


def is_of_communication(error: BaseException) -> bool:
    """Whether another rank could not be reached: a timeout of the store, or what Gloo says then."""
    return type(error).__name__ in _LOST_KINDS or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_TEXTS)
    )


def waited_in(traceback: TracebackType | None) -> str:
    """ " in all_reduce of group TENSOR_MODEL_PARALLEL_GROUP, ranks 0 1", or nothing where no frame is of a collective.

    Gloo's errors do not say that, and a handle that is waited for later does not know.
    """
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if frame.f_globals.get("__name__") == _COLLECTIVES:
            distributed = sys.modules["torch.distributed"]
            group = frame.f_locals.get("group") or distributed.group.WORLD
            ranks = " ".join(map(str, distributed.get_process_group_ranks(group)))
            return f" in {frame.f_code.co_name} of group {group.group_desc}, ranks {ranks}"
    return ""


def find(error: BaseException | None) -> AscendPatchError | None:
    """The first error of ours in the chain of causes; None for a mistake in ascend_patch, which needs its traceback."""
    while error is not None and not isinstance(error, AscendPatchError):
        error = error.__cause__  # torch wraps what an entry point of `torch.backends` raises
    return None if isinstance(error, DeclarationError) else error

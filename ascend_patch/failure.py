"""How an :class:`AscendPatchError` that ends a process is shown: one paragraph instead of a traceback a rank.

All ranks of a job usually fail alike. Rank 0 speaks at once; the others keep quiet until the launcher has had
the time to end them, and speak only if it has not, because then the failure is theirs alone.

An error of the communication between ranks keeps its traceback, and a paragraph that says what it means, and which rank
is missing, comes after it.
"""

import sys
import time
from types import TracebackType

from ascend_patch import absent
from ascend_patch.absent import Waited
from ascend_patch.config import rank
from ascend_patch.engine.errors import AscendPatchError, DeclarationError

#: How long a rank other than 0 waits for the launcher to end it, in seconds. torchrun looks ten times a second.
PATIENCE = 5.0

#: Of torch.distributed, which is not imported for this.
_COLLECTIVES = "torch.distributed.distributed_c10d"
_LOST_KINDS = ("DistStoreError", "DistNetworkError")
_LOST_TEXTS = (
    "Timed out waiting",  # Gloo
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "connectFullMesh failed",
    "Watchdog caught collective operation timeout",  # NCCL and HCCL, where they raise an error
    "timed out in blocking wait",
    "The wait execution of the Notify register times out",  # CANN's EI0002, below the first line
)
_TIMEOUTS = ("imed out", "times out", "operation timeout")
_UNREACHABLE = (
    "rank {rank} lost another rank{where}: {error}. {why} --distributed-timeout-minutes is how long a rank waits. "
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
        if own is None and is_of_communication(error):
            self.previous(kind, error, traceback)
            waited = waited_in(traceback)
            said = str(error).partition("\n")[0].rstrip(".")
            text = _UNREACHABLE.format(
                rank=rank(),
                where=f" in {waited}" if waited else "",
                error=said,
                why=absent.explain(waited, timed_out=any(text in str(error) for text in _TIMEOUTS)),
            )
            print(f"ascend_patch: {text}", file=sys.stderr)
            return
        absent.leave_end(error)
        if own is None:
            self.previous(kind, error, traceback)
            return
        if rank() != 0:
            time.sleep(PATIENCE)
        print(f"ascend_patch: {own}", file=sys.stderr, flush=True)


def is_of_communication(error: BaseException) -> bool:
    """Whether another rank could not be reached: a timeout of the store, or what Gloo, NCCL and HCCL say then."""
    return type(error).__name__ in _LOST_KINDS or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_TEXTS)
    )


def waited_in(traceback: TracebackType | None) -> Waited | None:
    """The collective and its group; None where no frame is of a collective, as where a handle is waited for later."""
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if frame.f_globals.get("__name__") == _COLLECTIVES:
            distributed = sys.modules["torch.distributed"]
            group = frame.f_locals.get("group") or distributed.group.WORLD
            if group is None:  # it is being made
                return None
            return Waited(frame.f_code.co_name, group.group_desc, tuple(distributed.get_process_group_ranks(group)))
    return None


def find(error: BaseException | None) -> AscendPatchError | None:
    """The first error of ours in the chain of causes; None for a mistake in ascend_patch, which needs its traceback."""
    while error is not None and not isinstance(error, AscendPatchError):
        error = error.__cause__  # torch wraps what an entry point of `torch.backends` raises
    return None if isinstance(error, DeclarationError) else error

"""What a user sees of an error: one paragraph, from rank 0 first."""

import sys
from pathlib import Path

import pytest
import torch

from ascend_patch import failure
from ascend_patch.engine.errors import AscendPatchError, DeclarationError


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Kinds of exception that reached the hook installed before ours."""
    seen: list[type] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: seen.append(kind))
    monkeypatch.delenv("RANK", raising=False)
    failure.install()
    failure.install()
    yield seen
    failure.uninstall()


def wrapped(error: Exception) -> Exception:
    """As torch wraps an exception of an entry point."""
    try:
        raise RuntimeError("Failed to load the backend extension") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
def test_ours_is_a_paragraph(others: list[type], capsys: pytest.CaptureFixture, wrap) -> None:
    error = wrap(AscendPatchError("Found a. Allowed is b. Do c."))
    sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == "ascend_patch: Found a. Allowed is b. Do c.\n"
    assert others == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("theirs"),
        DeclarationError("a mistake of ours"),
        KeyboardInterrupt(),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] Unable to find address for: foo"),
    ],
)
def test_everything_else_keeps_its_traceback(
    others: list[type], capsys: pytest.CaptureFixture, error: BaseException
) -> None:
    sys.excepthook(type(error), error, None)
    assert others == [type(error)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 60000ms for recv",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:46295",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5) ran for 60000 milliseconds",
    ],
)
def test_a_lost_rank_is_explained(others: list[type], capsys: pytest.CaptureFixture, text: str) -> None:
    sys.excepthook(RuntimeError, RuntimeError(text), None)
    assert others == [RuntimeError]
    said = capsys.readouterr().err
    assert said.startswith(f"ascend_patch: rank 0 lost another rank: {text}. Either")
    assert said.count("\n") == 1


def test_ascends_code_is_below_the_first_line(others: list[type], capsys: pytest.CaptureFixture) -> None:
    text = "error code is 507048\n[Error]: The\nEI0002: [PID: 7] The wait execution of the Notify register times out."
    sys.excepthook(RuntimeError, RuntimeError(text), None)
    assert capsys.readouterr().err.startswith("ascend_patch: rank 0 lost another rank: error code is 507048. Either")


@pytest.mark.parametrize(
    ("text", "timed_out"),
    [("Timed out waiting 1ms", True), ("Connection reset by peer", False), ("\nNotify register times out", True)],
)
def test_a_timeout_is_told_from_a_lost_connection(
    others: list[type], monkeypatch: pytest.MonkeyPatch, text: str, timed_out: bool
) -> None:
    asked = []
    monkeypatch.setattr(failure.absent, "explain", lambda waited, timed_out: asked.append(timed_out))
    monkeypatch.setattr(failure, "is_of_communication", lambda error: True)
    sys.excepthook(RuntimeError, RuntimeError(text), None)
    assert asked == [timed_out]


def test_an_own_error_is_left_for_the_job(
    others: list[type], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(failure.absent, "leave_end", left.append)
    errors = [ValueError("theirs"), AscendPatchError("ours")]
    for error in errors:
        sys.excepthook(type(error), error, None)
    assert left == errors


def test_the_collective_is_named(
    others: list[type], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = not torch.distributed.is_initialized()  # by another test of this process
    if started:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    group = torch.distributed.new_group([0], group_desc="EXPERT_MODEL_PARALLEL_GROUP")
    try:

        def lost(*_: object) -> None:
            raise RuntimeError("Timed out waiting 60000ms for recv")

        monkeypatch.setattr(torch.distributed.distributed_c10d, "_check_single_tensor", lost)
        with pytest.raises(RuntimeError) as raised:
            torch.distributed.all_reduce(torch.ones(1), group=group)
        sys.excepthook(raised.type, raised.value, raised.tb)
    finally:
        torch.distributed.destroy_process_group(None if started else group)
    assert "lost another rank in all_reduce of group EXPERT_MODEL_PARALLEL_GROUP, ranks 0: Timed out" in (
        capsys.readouterr().err
    )


def test_other_ranks_wait(others: list[type], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(failure.time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        sys.excepthook(AscendPatchError, AscendPatchError("mine alone"), None)
    assert waited == [failure.PATIENCE]
    assert capsys.readouterr().err == 2 * "ascend_patch: mine alone\n"


def test_uninstall_leaves_a_later_hook(others: list[type], monkeypatch: pytest.MonkeyPatch) -> None:
    later = object()
    monkeypatch.setattr(sys, "excepthook", later)
    failure.uninstall()
    assert sys.excepthook is later

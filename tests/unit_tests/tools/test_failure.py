"""Which of the many tracebacks of a failed run is the reason."""

from tools.train.failure import EXCERPT_LINES, find_failure

LAUNCHER = """\
W0102 10:08:56.346000 16188 torch/distributed/elastic/multiprocessing/api.py:908] Sending process 16257 closing
E0102 10:08:56.472000 16188 torch/distributed/elastic/multiprocessing/api.py:882] failed (exitcode: {code}) \
local_rank: 1 (pid: 16256) of binary: python
Traceback (most recent call last):
  File "torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: 
============================================================
"""  # noqa: W291
TRACEBACK = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "training.py", line 1941, in get_optimizer_param_scheduler
[rank1]:     opt_param_scheduler = OptimizerParamScheduler(
[rank1]: AssertionError: warm-up is longer
[rank1]: than the decay
"""


def test_the_exception_of_the_rank_not_of_torchrun():
    failure = find_failure((TRACEBACK + LAUNCHER.format(code=1)).splitlines())
    assert failure.reason == "AssertionError: warm-up is longer than the decay"
    assert failure.excerpt[0] == "Traceback (most recent call last):"
    assert failure.excerpt[-1] == "AssertionError: warm-up is longer"


def test_an_exception_with_a_module_name_and_newlines():
    lines = ["ascend_patch.engine.errors.PatchError: moe.permute does not fit.\n", "Disable it.\n", "\n", "more\n"]
    assert find_failure(lines).reason == "ascend_patch.engine.errors.PatchError: moe.permute does not fit. Disable it."


def test_the_first_of_several():
    assert find_failure(["ValueError: first", "RuntimeError: second"]).reason == "ValueError: first"


def test_a_killed_rank():
    failure = find_failure(LAUNCHER.format(code=-9).splitlines())
    assert failure.reason == "Rank 1 was ended by SIGKILL. Perhaps memory ran out."
    assert "SIGSEGV" in find_failure(LAUNCHER.format(code=-11).splitlines()).reason


def test_a_flag_upstream_does_not_know():
    lines = ["usage: pretrain_gpt.py [-h]", "pretrain_gpt.py: error: unrecognized arguments: --no-such-flag"]
    assert find_failure(lines).reason == "pretrain_gpt.py: error: unrecognized arguments: --no-such-flag"


def test_the_excerpt_is_short():
    lines = [f"line {i}" for i in range(100)] + ["ValueError: bad"] + ["afterwards"] * 100
    assert find_failure(lines).excerpt == [*(f"line {i}" for i in range(101 - EXCERPT_LINES, 100)), "ValueError: bad"]


def test_a_log_without_a_reason_says_so():
    failure = find_failure(["starting", "done"])
    assert failure.reason == "The log names no reason."
    assert failure.excerpt == ["starting", "done"]

"""`ascend-patch compare`, on real logs and on planted faults."""

import json
import subprocess
import sys

import pytest

from ascend_patch.cli import main
from tests.unit_tests.runs.logs import LOGS, Upstream, header, write

CPU, NPU, RESUMED = (str(LOGS / f"{name}.log") for name in ("cpu", "npu", "resumed"))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["compare", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def read(capsys, *arguments: str) -> tuple[int, dict]:
    status, out, _ = run(capsys, *arguments, "--json")
    return status, json.loads(out, parse_constant=pytest.fail)


def test_within_tolerance(capsys):
    status, out, _ = run(capsys, CPU, NPU)
    assert status == 0
    assert "\nA    cpu.log  1-16        1 " in out and "\nB    npu.log  1-16        1 " in out
    assert "\nlm loss              16        0.19 %              13            0.074 %  1 %           none\n" in out
    assert "- arguments differ (A / B): bf16 False / True, params_dtype torch.float32 / torch.bfloat16.\n" in out
    assert "- A and B: the log's losses of iteration 2 are means" in out
    judged = "lm loss, grad norm, lm loss test, lm loss validation, load_balancing_loss"
    assert out.endswith(f"Within tolerance: {judged}, over 16 iterations.\n")


def test_beyond_tolerance(capsys):
    status, out, _ = run(capsys, CPU, NPU, "--tolerance", "0.001", "--tolerance", "grad-norm=off")
    assert status == 1
    assert (
        "Beyond tolerance: lm loss first, in iteration 11: 4.923372 in A, 4.929643 in B (+0.13 %, allowed 0.1 %)."
        in out
    )


def test_json(capsys):
    status, data = read(capsys, CPU, NPU, "--tolerance", "0.001", "--tolerance", "grad norm=off", "--names", "host,sim")
    assert status == 1
    assert not data["within_tolerance"] and data["first_beyond"] == "lm loss"
    assert (data["a"]["name"], data["b"]["name"]) == ("host", "sim")
    assert data["a"]["throughput"]["tokens"] == pytest.approx(data["a"]["throughput"]["samples"] * 128)
    loss, norm, *_ = data["quantities"]
    assert loss["first_beyond"]["iteration"] == 11 and loss["tolerance"] == {"relative": 0.001, "absolute": 0.0}
    assert norm["tolerance"] is None and norm["first_beyond"] is None
    assert data["arguments"]["bf16"] == ["False", "True"]


def test_a_resumed_run_is_equal(capsys):
    status, out, _ = run(capsys, CPU, RESUMED, "--tolerance", "0")
    assert status == 0
    assert "B: logged more than once, the later line counts: iterations 9-11.\n" in out
    assert "B: the log's losses of iterations 2, 10 are means" in out


def test_a_loss_that_is_no_number(capsys, tmp_path):
    losses = {i: 8.0 - i / 10 for i in range(1, 9)}
    a = write(tmp_path, "a", header(log_interval=1) + Upstream().process(losses))
    b = write(tmp_path, "b", header(log_interval=1) + Upstream().process(losses | {6: float("nan")}))
    status, data = read(capsys, str(a), str(b))
    assert status == 1
    assert data["quantities"][0]["first_beyond"] == {
        "first_iteration": 6,
        "iteration": 6,
        "a": 7.4,
        "b": "nan",
        "relative": "nan",
    }
    assert "in iteration 6: 7.4 in A, nan in B" in run(capsys, str(a), str(b))[1]


def test_releases_side_by_side(capsys, tmp_path):
    """0.15 prints the first two losses as they are, 0.16 the mean of the two: the same training."""
    losses = {i: 8.0 - i / 10 for i in range(1, 9)}
    old = write(tmp_path, "old", Upstream(microseconds=False, shows_zero=False).process(losses))
    new = write(tmp_path, "new", Upstream().process(losses))
    status, out, _ = run(capsys, str(old), str(new), "--tolerance", "0", "--tolerance", "grad-norm=off")
    assert status == 0, out
    assert "B: the log's losses of iteration 2" in out and "A: the log's" not in out


def test_devices_and_length_that_the_log_does_not_tell(capsys, tmp_path):
    log = str(write(tmp_path, "run", Upstream().process(dict.fromkeys(range(1, 9), 5.0), seconds=0.5)))
    _, data = read(capsys, log, log)
    assert data["a"]["throughput"]["tokens"] is None
    _, data = read(capsys, log, log, "--devices", "4,2", "--seq-length", "128")
    assert [data[run]["throughput"]["tokens"] for run in "ab"] == [16 * 128 / 4, 16 * 128 / 2]


def test_names_are_the_ends_of_the_paths_that_differ(capsys, tmp_path):
    for name in ("gpu", "npu"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "train", Upstream().process({1: 5.0, 2: 4.0}))
    _, data = read(capsys, str(tmp_path / "gpu" / "train.log"), str(tmp_path / "npu" / "train.log"))
    assert (data["a"]["name"], data["b"]["name"]) == ("gpu/train.log", "npu/train.log")


def test_figure(capsys, tmp_path):
    status, _, _ = run(capsys, CPU, NPU, "--figure", str(tmp_path / "figure.png"))
    assert status == 0 and (tmp_path / "figure.png").stat().st_size > 20_000


def test_what_cannot_be_carried_out(capsys, tmp_path):
    (tmp_path / "empty.log").write_text("[rank1]: nothing\n")
    for other, message in (
        ("missing.log", "missing.log cannot be read: No such file or directory. Name a log"),
        ("empty.log", "has no line of training"),
        ("", "is a folder without TensorBoard's event files"),
    ):
        status, out, err = run(capsys, CPU, str(tmp_path / other))
        assert (status, out) == (2, "") and err.startswith("ascend-patch: ") and message in err


@pytest.mark.parametrize(
    "option",
    ["--tolerance=many", "--tolerance=-1", "--tolerance=nan", "--tolerance=off", "--tolerance=grad-norm=1,2,3"]
    + ["--names=one", "--names=,b", "--devices=0", "--devices=1,2,3", "--seq-length=long"],
)
def test_a_wrong_command_line(capsys, option):
    with pytest.raises(SystemExit) as ended:
        main(["compare", CPU, NPU, option])
    assert ended.value.code == 2
    assert option.partition("=")[2] in capsys.readouterr().err


def test_only_what_is_needed_is_imported():
    code = (
        "import sys; from ascend_patch.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'megatron.core', 'transformers', 'numpy', 'matplotlib', 'tensorboard'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    command = [sys.executable, "-c", code, "compare", CPU, NPU]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

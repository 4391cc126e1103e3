"""What activation touches, and when: nothing of torch before Megatron is imported, nothing at all unless asked."""

import sys
from pathlib import Path

import pytest

from tests.system_tests.launcher import Run, environment, run

IMPORT = """
import sys
import torch  # with TORCH_DEVICE_BACKEND_AUTOLOAD=0: without anybody's entry point
from tests.system_tests import snapshot

before, finders = snapshot.take(), list(sys.meta_path)
torch._import_device_backends()  # what `import torch` ends with
print("changed:", snapshot.changed(before, snapshot.take()))
print("finders:", len(sys.meta_path) - len(finders))
print("loaded:", sorted({"ascend_patch.activation", "megatron", "torch_npu"} & set(sys.modules)))
"""

MEGATRON = """
import torch
import megatron.core.models.gpt.gpt_layer_specs
import sys

ours = [
    f"{name}.{attribute}"
    for name, module in list(sys.modules.items())
    if name.startswith(("megatron", "torch"))
    for attribute, value in list(vars(module).items())
    if str(getattr(value, "__module__", "")).startswith("ascend_patch")
]
print("cuda:", torch.cuda.is_available(), "ours:", bool(ours), ours[:5])
"""

AGENT = """
import sys
from torch.distributed import run
from tests.system_tests import snapshot

before = snapshot.take()
run.main(["--standalone", "--nproc-per-node", "1", sys.argv[1]])
print("changed:", snapshot.changed(before, snapshot.take()))
print("loaded:", "megatron.core" in sys.modules)
"""


def python(code: str, *arguments: str, **variables: str) -> Run:
    return run([sys.executable, "-W", "ignore", "-c", code, *arguments], environment(**variables))


def test_import_torch_without_being_asked() -> None:
    output = python(IMPORT, TORCH_DEVICE_BACKEND_AUTOLOAD="0").succeeded().output
    assert output == "changed: []\nfinders: 0\nloaded: []\n"


def test_import_torch_without_megatron() -> None:
    output = python(IMPORT, TORCH_DEVICE_BACKEND_AUTOLOAD="0", ASCEND_PATCH="1").succeeded().output
    assert output == "changed: []\nfinders: 1\nloaded: ['ascend_patch.activation']\n"


def test_megatron_is_patched_if_asked() -> None:
    output = python(MEGATRON, ASCEND_PATCH="1", ASCEND_PATCH_DEVICE="cpu").succeeded().output
    assert "cuda: True ours: True" in output


@pytest.mark.parametrize("value", [None, "0"])
def test_megatron_is_untouched_otherwise(value: str | None) -> None:
    variables = {"ASCEND_PATCH": value} if value else {}
    output = python(MEGATRON, CUDA_VISIBLE_DEVICES="", **variables).succeeded().output
    assert "cuda: False ours: False []" in output


def test_process_of_torchrun_stays_clean(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(MEGATRON)
    output = python(AGENT, str(worker), ASCEND_PATCH="1", ASCEND_PATCH_DEVICE="cpu").succeeded().output
    assert "cuda: True ours: True" in output  # the worker
    assert "changed: []\nloaded: False\n" in output  # its launcher


@pytest.mark.parametrize(
    ("variables", "found", "allowed"),
    [
        ({"ASCEND_PATCH_DEVICE": "tpu"}, "tpu", "npu, cuda, cpu"),
        ({"ASCEND_PATCH_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}, "no GPU", "the best device there is"),
        ({"ASCEND_PATCH_DISABLE": "moe.permut"}, "moe.permut", "Did you mean moe.permute?"),
        ({"ASCEND_PATCH_DEVCE": "cpu"}, "ASCEND_PATCH_DEVCE is set", "ASCEND_PATCH_DEVICE"),
        ({"ASCEND_PATCH": "maybe"}, "ASCEND_PATCH='maybe'", "1 or 0"),
        ({"ASCEND_PATCH_OPS": "grouped_gemm=fastest"}, "fastest", "reference"),
        ({"ASCEND_PATCH_OPS": "grouped_gemm"}, "grouped_gemm", "operator=variant"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing(variables: dict[str, str], found: str, allowed: str) -> None:
    ended = python("import torch, megatron.core", **{"ASCEND_PATCH": "1", **variables}).failed()
    assert len(ended.paragraphs) == 1, ended.output
    assert found in ended.paragraphs[0]
    assert allowed in ended.paragraphs[0]
    assert "Traceback" not in ended.output


def test_megatron_imported_before_activation() -> None:
    ended = python("import megatron.core\nimport ascend_patch.adaptor").failed()
    assert len(ended.paragraphs) == 1, ended.output
    assert "imported before" in ended.paragraphs[0]
    assert "import ascend_patch.adaptor" in ended.paragraphs[0]
    assert "Traceback" not in ended.output


def test_run_names_a_script_that_is_not_there() -> None:
    ended = run([sys.executable, "-m", "ascend_patch.run", "no/such.py"], environment()).failed()
    assert len(ended.paragraphs) == 1
    assert "no/such.py" in ended.paragraphs[0]

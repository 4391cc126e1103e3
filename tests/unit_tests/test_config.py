"""Settings from the environment."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from ascend_patch import config
from ascend_patch.config import Config, Trace, rank
from ascend_patch.engine.errors import AscendPatchError

PACKAGE = Path(config.__file__).parent


def test_nothing_set() -> None:
    assert Config.from_environment({"PATH": "/bin"}) == Config()
    assert not Config().enabled


def test_everything_set() -> None:
    found = Config.from_environment(
        {
            "ASCEND_PATCH": "1",
            "ASCEND_PATCH_DEVICE": " NPU ",
            "ASCEND_PATCH_DISABLE": "moe.permute, rope.fused,",
            "ASCEND_PATCH_ALLOW_DRIFT": "yes",
            "ASCEND_PATCH_OPS": "grouped_gemm=reference, attention = torch",
            "ASCEND_PATCH_REPORT": "runs/patches.json",
            "ASCEND_PATCH_DETERMINISTIC": "1",
            "ASCEND_PATCH_TRACE": "runs/trace@2,4-6",
            "ASCEND_PATCH_QUIET": "on",
            "MP_DATASET_TYPE": "Raw",
        }
    )
    assert found == Config(
        enabled=True,
        device="npu",
        disabled=frozenset({"moe.permute", "rope.fused"}),
        allow_drift=True,
        ops={"grouped_gemm": "reference", "attention": "torch"},
        report=Path("runs/patches.json"),
        deterministic=True,
        dataset_type="raw",
        trace=Trace(Path("runs/trace"), frozenset({2, 4, 5, 6})),
        quiet=True,
    )


@pytest.mark.parametrize(
    ("value", "enabled"), [("0", False), ("", False), ("Off", False), ("TRUE", True), (" 1 ", True)]
)
def test_flags(value: str, enabled: bool) -> None:
    assert Config.from_environment({"ASCEND_PATCH": value}).enabled is enabled


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ASCEND_PATCH": "2"}, r"ASCEND_PATCH='2' is neither on nor off. Use 1 or 0"),
        ({"ASCEND_PATCH_DEVCE": "cpu"}, r"ASCEND_PATCH_DEVCE is set, .* ASCEND_PATCH_DEVICE, .* Correct or unset it"),
        ({"ASCEND_PATCH_OPS": "attention"}, r"contains 'attention'. Write operator=variant"),
        ({"ASCEND_PATCH_OPS": "=torch"}, r"contains '=torch'"),
        ({"ASCEND_PATCH_TRACE": "trace@0"}, r"'trace@0' is not a folder, or a folder, @ and the steps .* from 1 on"),
        ({"ASCEND_PATCH_TRACE": "trace@1,5-3"}, r"ASCEND_PATCH_TRACE='trace@1,5-3' is not"),
        ({"ASCEND_PATCH_TRACE": "trace@"}, r"ASCEND_PATCH_TRACE='trace@' is not"),
        ({"ASCEND_PATCH_TRACE": "@1"}, r"ASCEND_PATCH_TRACE='@1' is not"),
        ({"MP_DATASET_TYPE": "json"}, r"MP_DATASET_TYPE='json' is none of raw, idxmap. Use one of them, or unset it"),
    ],
)
def test_errors(variables: dict[str, str], message: str) -> None:
    with pytest.raises(AscendPatchError, match=message):
        Config.from_environment(variables)


def test_variables_are_these() -> None:
    """A new switch is a decision: upstream's flags come first."""
    assert {f.metadata["variable"] for f in fields(Config)} == {
        "ASCEND_PATCH",
        "ASCEND_PATCH_ALLOW_DRIFT",
        "ASCEND_PATCH_DETERMINISTIC",
        "ASCEND_PATCH_DEVICE",
        "ASCEND_PATCH_DISABLE",
        "ASCEND_PATCH_OPS",
        "ASCEND_PATCH_QUIET",
        "ASCEND_PATCH_REPORT",
        "ASCEND_PATCH_TRACE",
        "MP_DATASET_TYPE",
    }
    assert all(f.metadata["meaning"] for f in fields(Config))


def test_no_other_module_reads_settings() -> None:
    reading = re.compile(r"""(?:environ(?:\.get)?|getenv)[\[(]\s*f?["']ASCEND_PATCH""")
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "config.py" and reading.search(path.read_text())]
    assert others == []


def test_rank() -> None:
    assert rank({}) == 0
    assert rank({"RANK": "3"}) == 3

"""Large blocks stay with the process: counted as page faults, in a process of its own."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, resource, torch
from ascend_patch.devices.cpu import allocator

def pages_faulted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(48 * 2**20, dtype=torch.uint8) for _ in range(2)]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (96 * 2**20 // resource.getpagesize())

found = {}
for name in ("default", "keep_large_blocks"):
    accepted = name == "default" or allocator.keep_large_blocks()
    found[name] = (accepted, min(pages_faulted() for _ in range(16)))
print(json.dumps([found, allocator.restore()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_same_blocks_again_cost_no_page_faults():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found, restored = json.loads(result.stdout)
    assert restored and all(accepted for accepted, _ in found.values())
    # The heap grows in some rounds, until aligned blocks find their places again; a mapping faults in every one.
    assert found["keep_large_blocks"][1] < 0.1
    assert found["default"][1] > 0.1


HUGE = """
import torch
from ascend_patch.devices.cpu import allocator

allocator.keep_large_blocks()
weight = torch.ones(16 * 2**20)
with open("/proc/self/smaps") as mappings:
    flags = [line.split()[1:] for line in mappings if line.startswith("VmFlags:")]
print(any("hg" in line for line in flags))
"""


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the kernel has no huge pages")
@pytest.mark.parametrize("wish", [None, "0"])
def test_huge_pages_are_asked_for_unless_the_user_said_otherwise(wish):
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if wish is None else {"THP_MEM_ALLOC_ENABLE": wish}
    result = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == str(wish is None)


def test_another_c_library_is_left_alone(monkeypatch):
    from ascend_patch.devices.cpu import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not allocator.keep_large_blocks()

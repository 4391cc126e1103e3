"""Fixtures of the device tests."""

from collections.abc import Iterator

import pytest

from ascend_patch.devices.cpu import CpuDevice


@pytest.fixture
def cpu_device() -> Iterator[CpuDevice]:
    """The cpu device, installed for one test."""
    device = CpuDevice()
    device.install()
    try:
        yield device
    finally:
        device.revert()

"""The suite's per-op cases under pytest: none without kernels, if that is not asked for."""

import pytest

from . import machine


def pytest_configure(config):
    if not machine.has_kernels() and not getattr(config.option, "reference", False):
        pytest.exit(f"benchmarks: {machine.mend()}", returncode=4)


def pytest_addoption(parser):
    parser.addoption("--reference", action="store_true", help="benchmarks: go on where the kernels are not built")

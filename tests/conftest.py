"""Which kernels the tests run on, said once at the top of every run."""

import os

import torch

from fastddpm import _extension


def pytest_report_header():
    built = f"C++ kernels ({_extension.module.isa})" if _extension.module else f"reference ({_extension.reason})"
    return f"fastddpm runs on: {built}; FASTDDPM_ISA={os.environ.get('FASTDDPM_ISA', '')}; torch {torch.__version__}"

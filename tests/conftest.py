"""Which kernels the tests run on, said once at the top of every run; and how several workers (`make test`) share a machine."""

import os

import pytest
import torch

from fastddpm import _extension
from fastddpm.integrations import torch_normals

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
LONGEST = ("test_triton_aot", "test_triton_interpret")
"""Files that take a minute and more."""

if WORKERS > 1:  # each worker, and what it starts, has its share of the cores; a test may ask for more threads
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def pytest_report_header():
    built = f"C++ kernels ({_extension.module.isa})" if _extension.module else f"reference ({_extension.reason})"
    return f"fastddpm runs on: {built}; FASTDDPM_ISA={os.environ.get('FASTDDPM_ISA', '')}; torch {torch.__version__}"


def pytest_collection_modifyitems(items):
    """The longest files first, since workers take files in this order: so they end together."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def few_are_many(monkeypatch):
    """The noise of a test's small images is made by the kernels, too, that make torch's."""
    monkeypatch.setattr(torch_normals, "LEAST", 16)

"""Which code serves the GPUs, and what is said where none of fastddpm's does."""

import subprocess
import sys
import warnings

import pytest
import torch
from helpers import same_bits, spread, values

from fastddpm import NoiseSchedule, _triton, coefficients, noise_key, reference

_triton.load()


@pytest.mark.parametrize("key", ["CUDA", *_triton.WITHOUT_KERNELS])
@pytest.mark.parametrize("op", _triton.OPS)
def test_every_op_is_registered_for_every_device(op, key):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastddpm::{op}", key)


def test_the_reason_is_said():
    built = torch.version.cuda is not None or torch.version.hip is not None
    assert built or _triton.reason == "this torch is built without CUDA and ROCm"
    assert _triton.serves("cuda") == ("Triton" if not _triton.reason else f"reference ({_triton.reason})")
    assert _triton.serves("mps") == "reference (fastddpm has no kernels for it)"


def test_a_missing_triton_is_the_reason(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_triton.importlib.util, "find_spec", lambda name: None)
    assert _triton._why_not() == "triton is not installed"


def test_the_reference_announces_itself_once_for_each_device(monkeypatch):
    monkeypatch.setattr(_triton, "_announcements", set())
    rows = coefficients.q_sample_rows(NoiseSchedule.linear(10), torch.device("cpu"), torch.float32)
    inputs = (values(2, 5), noise_key(1, batch_size=2), spread(2, 10), rows)
    with pytest.warns(RuntimeWarning, match="eager reference on cpu: for a test"):
        first = _triton._announced("noising", "for a test")(*inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = _triton._announced("noising", "for a test")(*inputs)
    assert same_bits(first, reference.noising(*inputs)) and same_bits(again, first)


def test_triton_is_not_imported_before_a_gpu_is_used():
    code = "import sys, fastddpm, fastddpm._triton as t; t.load(); assert 'fastddpm.kernels' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

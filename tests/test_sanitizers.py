"""The C++ under sanitizers: its ops on a stand-in for libtorch, a fuzzer of them, and the extension under the tests of its ops.

`make sanitize` runs all of it; without the slow ones it is the ops over small shapes.
"""

import os
import random
import shutil
import sys

import pytest
import torch
from native_builds import CXX, OPTIONS, ROOT, SANITIZED, build, missing, run

from fastddpm import _extension, ops

pytestmark = [
    pytest.mark.skipif(bool(missing(CXX)), reason=str(missing(CXX))),
    pytest.mark.skipif(_extension.module is None, reason="the C++ kernels are not built"),
]
ISAS = getattr(_extension.module, "isas", ())
CLANG = "clang++" if shutil.which("clang++") else CXX
"""Its sanitizer of undefined behaviour sees more than gcc's."""
SMALL = 4
"""How many of the driver's shapes CI takes."""


def fnv_1a(x):
    """As the driver hashes a result."""
    made = 0xCBF29CE484222325
    for byte in x.contiguous().view(torch.uint8).flatten().tolist():
        made = (made ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{made:016x}"


def test_the_ops_are_clean_and_the_extensions(tmp_path):
    """The driver's noise is that of the extension: so it is these kernels that it runs."""
    driver = build(tmp_path, "-O0", *SANITIZED)
    printed = {run([driver, isa, 2, 1, SMALL]) for isa in ISAS}
    assert len(printed) == 1, "the instruction sets differ"
    key, noise = torch.empty(2, 2, dtype=torch.int64), torch.empty(2, 3, 5, 7)
    ops.fill_key_(key, -7, (1 << 61) + 12345 + (77 << 32))
    ops.randn_(noise, key)
    assert f"float32 contiguous 2 3 5 7 randn {fnv_1a(noise)}" in printed.pop().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_the_ops_are_clean_over_all_shapes(isa, tmp_path):
    assert run([build(tmp_path, "-O1", *SANITIZED, compiler=CLANG), isa, 3])


@pytest.mark.slow
def test_threads_do_not_race(tmp_path):
    """Two callers at once, each on two threads, who share the memory of large results."""
    driver = build(tmp_path, "-O1", "-g1", "-fsanitize=thread")
    assert run([driver, ISAS[0], 2, 2])


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("clang++")), reason=str(missing("clang++")))
def test_a_fuzzer_finds_nothing(tmp_path):
    fuzzer = build(tmp_path, "-O1", *SANITIZED, "-fsanitize=fuzzer", main="fuzz", compiler="clang++")
    seconds = os.environ.get("FASTDDPM_FUZZ_SECONDS", "60")
    (tmp_path / "corpus").mkdir()
    for i in range(1000):  # from nothing it is long before it makes inputs long enough for a whole call
        (tmp_path / "corpus" / str(i)).write_bytes(random.Random(i).randbytes(512))
    flags = [f"-max_total_time={seconds}", "-max_len=512", "-len_control=0", "-timeout=60"]
    run([fuzzer, *flags, "corpus"], cwd=tmp_path)


SHADOWED = ("--deselect", "tests/test_memory.py::test_empty_cache_gives_the_memory_back")
"""What measures the memory of the process, of which the sanitizer keeps some."""

OP_TESTS = "noise layouts operands gradients backward vlb large memory float16 op_refusals two_ranks"


@pytest.mark.slow
def test_the_extension_is_clean_under_the_tests_of_its_ops(tmp_path):
    """A build of its own, in a folder of its own; Python itself is not sanitized, so the sanitizer is loaded before it."""

    def python(*arguments):
        return run([sys.executable, *arguments], cwd=library, env={**os.environ, **loaded})

    flags, library = " ".join((*SANITIZED, "-O1", *OPTIONS)), tmp_path / "lib"
    built = {"CFLAGS": flags, "CXXFLAGS": flags, "LDFLAGS": "-fsanitize=address,undefined", "FASTDDPM_FORCE_CPP": "1"}
    command = [sys.executable, "setup.py", "build", "-b", tmp_path / "build", "--build-lib", library]
    run(command, cwd=ROOT, env={**os.environ, **built})
    preloaded = " ".join(run([CXX, f"-print-file-name=lib{name}.so"]).strip() for name in ("asan", "ubsan"))
    loaded = {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(library), "OMP_NUM_THREADS": "2"}
    assert str(library) in python("-c", "import fastddpm._C as c; print(c.__file__)")
    files = [ROOT / "tests" / f"test_{name}.py" for name in OP_TESTS.split()]
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", *SHADOWED, *files)

"""The compiler finds vectors in every kernel's loop over elements. One that it leaves scalar gives the same bits at a tenth of
the speed, and no other test would notice: GCC 12 gave up where it had more than ten pairs of pointers to check."""

import platform
import re
import subprocess

import pytest
from native_builds import CXX, KERNELS, OPTIONS, missing

HEADERS = ("adamw", "mse", "noising", "reverse", "torch_normals", "vlb")
ELEMENTS = re.compile(r"for \(int64_t i = \w+; i < (n|chunk\.count|run\.count|kPairs|kBehind|kState - 1); \+\+i\)")


def reported(isa):
    """What GCC says of its loops: {(file, line): whether it became vectors in all that is made of the template}."""
    command = [CXX, "-std=c++17", "-O3", "-w", *OPTIONS, "-fopt-info-vec-all", "-c", KERNELS / f"{isa}.cpp", "-o", "/dev/null"]
    said = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if said.returncode:
        pytest.skip(f"-fopt-info is GCC's: {said.stderr.splitlines()[:1]}")
    loops: dict[tuple[str, int], bool] = {}
    for name, line, verdict in re.findall(r"kernels/cpu/(\w+)\.h:(\d+):\d+: (.*)", said.stderr):
        place = name, int(line)
        if verdict.startswith("optimized: loop vectorized"):
            loops.setdefault(place, True)
        elif verdict == "missed: couldn't vectorize loop":
            loops[place] = False
    return loops


@pytest.mark.skipif(bool(missing(CXX)), reason=str(missing(CXX)))
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86-64's instruction sets")
@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_every_loop_over_elements_is_vectors(isa):
    loops = reported(isa)
    wanted = {
        (name, number)
        for name in HEADERS
        for number, line in enumerate((KERNELS / f"{name}.h").read_text().splitlines(), 1)
        if ELEMENTS.search(line)
    }
    assert len(wanted) > 20
    assert sorted(place for place in wanted if not loops.get(place)) == []

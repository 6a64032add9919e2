"""aarch64: cross-compiled, run under qemu's user mode, and held to the x86-64 build bit for bit. Speed there is unmeasured."""

import platform
import re

import native_builds
import pytest
from native_builds import build, missing, run

PREFIX = "aarch64-linux-gnu-"
absent = missing(native_builds.CXX, f"{PREFIX}g++", f"{PREFIX}objdump", "qemu-aarch64")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(absent), reason=str(absent))]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build(tmp_path_factory.mktemp("aarch64"), "-O3", "-static", compiler=f"{PREFIX}g++")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run([build(tmp_path_factory.mktemp("here"), "-O3"), "portable", 2])


@pytest.mark.parametrize("isa", ["neon", "portable"])
def test_every_result_is_that_of_another_architecture(isa, driver, expected):
    """Noise, noising, mse, vlb, hybrid and reverse, values and gradients, and Box and Muller's normals of a sample of words."""
    assert platform.machine() != "aarch64" and len(expected.splitlines()) > 8000
    got = run(["qemu-aarch64", driver, isa, 2])
    assert [pair for pair in zip(got.splitlines(), expected.splitlines(), strict=True) if pair[0] != pair[1]] == []


def disassembled(driver, name):
    """Instructions of a function of the NEON kernels, each as the mnemonic and its operands."""
    listing = run([f"{PREFIX}objdump", "-d", "-C", "--no-show-raw-insn", driver.with_name("neon.o")])
    functions = re.split(r"^[0-9a-f]+ <(.*)>:\n", listing, flags=re.MULTILINE)
    bodies = [body for head, body in zip(functions[1::2], functions[2::2], strict=True) if re.search(rf"::{name}\(", head)]
    assert bodies, f"{name} was not found"
    return [re.findall(r"^\s+[0-9a-f]+:\t(.*)$", body, re.MULTILINE) for body in bodies]


def test_the_noise_is_vectors_and_no_scalar_loop(driver):
    for instructions in disassembled(driver, "block_normals"):
        words = [line.split() for line in instructions]
        vector = [name for name, *operands in words if operands and operands[0].startswith(("v", "{v"))]
        scalar = [name for name, *operands in words if operands and re.match(r"[sdwx]\d", operands[0])]
        # 2 of Philox's products for each vector of blocks in a round of the loop, and in the two rounds before it, which have
        # constants beside them; a square root and 15 fused multiply-adds for each vector of pairs: four of each at once
        counted = {name: vector.count(name) for name in ("umull", "fsqrt", "fmla", "st2")}
        assert counted == {"umull": 16, "fsqrt": 4, "fmla": 60, "st2": 4}
        assert not [name for name in scalar if name.startswith(("f", "scvtf", "ucvtf"))], "no float is worked on by itself"
        assert scalar.count("mul") + scalar.count("umull") <= 2, "the products that a sample's blocks share"

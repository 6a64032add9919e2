"""A file of kernels runs only on a CPU that has all that its code was compiled for."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "kernels" / "cpu"


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_every_instruction_set_that_a_file_opens_is_asked_of_the_cpu(name):
    source = (SOURCES / f"{name}.cpp").read_text()
    opened = re.search(r'FASTDDPM_TARGET_BEGIN\("(.*)"\)', source)[1].split(",")
    runs_here = re.search(r"bool runs_here\(\) {(.*?)}", source, re.DOTALL)[1]
    asked = re.findall(r'__builtin_cpu_supports\("(\w+)"\)|cpu_has_(\w+)\(\)', runs_here)
    assert {first or second for first, second in asked} == set(opened)

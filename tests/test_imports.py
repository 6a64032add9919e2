"""Who imports whom inside the package: no circle, not for a type and not in a function either."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    **{
        path: ("fastddpm", *path.relative_to(ROOT / "fastddpm").with_suffix("").parts)
        for path in (ROOT / "fastddpm").rglob("*.py")
    },
    **{path: ("fastddpm", "kernels", path.stem) for path in (ROOT / "kernels" / "triton").glob("*.py")},
}
MODULES = {name[:-1] if name[-1] == "__init__" else name: path for path, name in FILES.items()}


def imported(module):
    """The modules of the package that one names in any of its import statements."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else ()
        base += tuple(node.module.split(".")) if node.module else ()
        for alias in node.names:
            found.add((*base, alias.name) if (*base, alias.name) in MODULES else base)
    return found & MODULES.keys()


GRAPH = {module: imported(module) for module in MODULES}


def circle_from(module, path=()):
    if module in path:
        return path[path.index(module) :]
    return next((found for other in sorted(GRAPH[module]) if (found := circle_from(other, (*path, module)))), None)


def test_no_import_circle():
    assert len(GRAPH) > 40 and ("fastddpm", "ops") in GRAPH[("fastddpm", "autograd")]
    assert {module: circle for module in GRAPH if (circle := circle_from(module))} == {}


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("reference", "functional"),
        ("rows", "schedule"),
        ("schedule", "coefficients"),
        ("ops", "autograd"),
        ("functional", "diffusion"),
        ("bits_per_dim", "diffusion"),
        ("diffusion", "graphs"),
    ],
)
def test_data_flows_one_way(below, above):
    """CONTRIBUTING's layers: what lies lower knows nothing of what lies above."""
    seen, todo = set(), [module for module in GRAPH if module[:2] == ("fastddpm", below)]
    while todo:
        module = todo.pop()
        todo += GRAPH[module] - seen
        seen |= GRAPH[module]
    assert ("fastddpm", above) not in seen


def test_no_lint_is_silenced_for_an_import():
    assert [str(path) for path in MODULES.values() if "E402" in path.read_text()] == []

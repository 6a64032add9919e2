"""Writes fastddpm/integrations/known_sources.py: python tests/peer_sources.py NAME=FOLDER .. (checkouts, unpacked wheels).

A folder belongs in the call when the tests of tests/test_patch*.py pass against its package; the oldest comes first.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

from fastddpm.integrations import PEERS
from fastddpm.integrations.sources import digest_of

OUT = Path(__file__).parents[1] / "fastddpm/integrations/known_sources.py"
HEAD = '''"""Digests of the methods that `patch` replaces, and the packages that have them. Written by tests/peer_sources.py."""

from collections.abc import Mapping

KNOWN: Mapping[str, Mapping[str, str]] = {
'''


def functions_of(folder: Path, module: str, cls: str) -> dict[str, ast.stmt]:
    """The methods that a class defines in a folder's copy of its module; none where there is no such module."""
    path = folder / (module.replace(".", "/") + ".py")
    if not path.exists():
        return {}
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == cls]
    return {node.name: node for found in classes for node in found.body if isinstance(node, ast.FunctionDef)}


def known_of(folders: dict[str, Path]) -> dict[str, dict[str, list[str]]]:
    """Of each method its digests, and of each of those the folders' names."""
    known: dict[str, dict[str, list[str]]] = {}
    for peer in (import_module(where, "fastddpm.integrations").PEERS[name] for name, where in PEERS.items()):
        wanted = {name for method in peer.methods for name in method.names}
        for label, folder in folders.items():
            functions = functions_of(folder, peer.module, peer.name.split(".")[-1])
            for name in wanted & functions.keys():
                known.setdefault(f"{peer.name}.{name}", {}).setdefault(digest_of(functions[name]), []).append(label)
    return known


def main(folders: dict[str, Path]) -> None:
    known, text = known_of(folders), HEAD
    for method in sorted(known):
        text += f'    "{method}": {{\n'
        for digest, labels in known[method].items():
            text += f'        "{digest}": "{" .. ".join(dict.fromkeys((labels[0], labels[-1])))}",\n'
        text += "    },\n"
    OUT.write_text(text + "}\n")


if __name__ == "__main__":
    main({name: Path(folder) for name, folder in (given.split("=", 1) for given in sys.argv[1:])})

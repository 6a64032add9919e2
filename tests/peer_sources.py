"""Writes fastddpm/integrations/known_sources.py: python tests/peer_sources.py NAME=FOLDER .. (checkouts, unpacked wheels).

A folder belongs in the call when the tests of tests/test_patch*.py pass against its package; the oldest comes first.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

from fastddpm.integrations import PEERS
from fastddpm.integrations.patch import Peer
from fastddpm.integrations.sources import digest_of

OUT = Path(__file__).parents[1] / "fastddpm/integrations/known_sources.py"
HEAD = '''"""Digests of the methods that `patch` replaces, and the packages that have them. Written by tests/peer_sources.py."""

from collections.abc import Mapping

KNOWN: Mapping[str, Mapping[str, str]] = {
'''


def functions_of(folder: Path, peer: Peer) -> dict[str, ast.stmt]:
    """The methods that a class defines in a folder's copy of its module, and what of the package its peer names besides; none
    where there is no such module."""
    path = folder / (peer.module.replace(".", "/") + ".py")
    if not path.exists():
        return {}
    found = {name: node for file in path.parent.glob("*.py") for name, node in defined(file).items() if name in peer.functions}
    own = peer.name.split(".")[-1] + "."
    return found | {name.removeprefix(own): node for name, node in defined(path).items() if name.startswith(own)}


def defined(file: Path) -> dict[str, ast.stmt]:
    """The functions of a file, and its classes' methods, by qualified name."""
    nodes = ast.parse(file.read_text()).body
    methods = {
        f"{node.name}.{part.name}": part
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.FunctionDef)
    }
    return methods | {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def known_of(folders: dict[str, Path]) -> dict[str, dict[str, list[str]]]:
    """Of each method its digests, and of each of those the folders' names."""
    known: dict[str, dict[str, list[str]]] = {}
    for peer in (import_module(where, "fastddpm.integrations").PEERS[name] for name, where in PEERS.items()):
        wanted = {*peer.names, *peer.functions}
        for label, folder in folders.items():
            functions = functions_of(folder, peer)
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

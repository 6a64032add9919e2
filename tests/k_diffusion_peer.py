"""k-diffusion's modules, of the installed package, without its network, its data and what no test calls of what they import."""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

NAME = "k_diffusion"
STAND_INS = {  # what its modules take of packages that bring a torch of their own, or a great deal else
    "dctorch": ("functional",),
    "torchdiffeq": ("odeint",),
    "torchsde": (),
    "torchvision.transforms": ("functional",),
}


def module(name):
    """Skips the module that calls where the package, or what is called of others, is missing."""
    missing = [needed for needed in (NAME, "einops", "scipy", "PIL", "safetensors") if not find_spec(needed)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)
    package = ModuleType(NAME)  # its own __init__ imports all there is
    package.__path__ = find_spec(NAME).submodule_search_locations
    absent = {name: _stand_in(name) for name in STAND_INS if not find_spec(name.split(".")[0])}
    with pytest.MonkeyPatch.context() as patch:
        for each, made in {NAME: package, **absent}.items():
            patch.setitem(sys.modules, each, made)
        return importlib.import_module(f"{NAME}.{name}")


def _stand_in(name):
    made = ModuleType(name)
    for each in STAND_INS[name]:
        setattr(made, each, None)
    return made

"""The memory that large results leave to later ones (kernels/cpu/pages.h)."""

from . import _extension


def empty_cache() -> int:
    """Gives that memory back to the system: at most four blocks, of 1 GiB in all. Tensors in use keep theirs.

    Returns:
        how many bytes were given back; 0 where the C++ kernels are not built.
    """
    return _extension.module.empty_cache() if _extension.module else 0

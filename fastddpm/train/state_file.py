"""A state of nested dicts, lists and tensors as one safetensors file. What is no tensor is JSON in its header, so reading one
runs no code.

safetensors holds contiguous tensors, each in memory of its own. So the JSON says with which strides each one lay, and tensors
that lie in the same memory are written once.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "fastddpm.state.1"
"""The header's entry."""


def to_bytes(state: dict[str, Any]) -> bytes:
    """The file's content. A tensor that is no dense block of memory (a slice, an expanded one) becomes a contiguous one."""
    packer = _Packer()
    text = json.dumps(packer.pack(state, ""))
    return save(packer.tensors, {FORMAT: text})


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that was written. Of a file that holds none: an exception of some kind."""
    with safe_open(path, "pt", str(device)) as file:
        metadata = file.metadata() or {}
        if FORMAT not in metadata:
            raise ValueError("a safetensors file of something else")
        return _Unpacker(file).unpack(json.loads(metadata[FORMAT]))


class _Packer:
    """JSON of a state, in which every object has one entry, named after what it stands for."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple, str] = {}  # by where they lie

    def pack(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value.detach(), path)}
        if isinstance(value, dict):
            return {"dict": [[key, self.pack(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.pack(item, f"{path}/{i}") for i, item in enumerate(value)]}
        return value

    def _tensor(self, value: Tensor, path: str) -> list[Any]:
        value = value if _is_dense(value) else value.contiguous()
        place = (value.device, value.data_ptr(), value.numel(), value.dtype)
        if place not in self._names:
            path = path.lstrip("/")
            while path in self.tensors:
                path += "'"
            self._names[place] = path
            whole = value.untyped_storage().nbytes() == value.nbytes  # of a part safetensors fears that it overlaps another
            self.tensors[path] = value.contiguous() if whole else value.clone(memory_format=torch.contiguous_format)
        return [self._names[place], list(value.shape), list(value.stride())]


class _Unpacker:
    def __init__(self, file: Any):
        self.file = file
        self._read: dict[str, Tensor] = {}

    def unpack(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return self._tensor(*content)
        if kind == "dict":
            return {key: self.unpack(item) for key, item in content}
        items = [self.unpack(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    def _tensor(self, name: str, shape: list[int], stride: list[int]) -> Tensor:
        if name not in self._read:
            contiguous = self.file.get_tensor(name)
            placed = contiguous.new_empty_strided(shape, stride)
            self._read[name] = placed.copy_(contiguous)
        tensor = self._read[name]
        same = list(tensor.shape) == shape and list(tensor.stride()) == stride
        return tensor if same else tensor.as_strided(shape, stride)


def _is_dense(x: Tensor) -> bool:
    """Whether its elements fill a block of memory, in some order of its dimensions."""
    filled = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != filled:
            return False
        filled *= size
    return True

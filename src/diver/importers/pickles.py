"""Reading pickles of others: tensors and plain numbers, and never any code."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diver.sets import SetError


def _number(dtype: np.dtype, data: Any = None) -> float:
    """Stands in for numpy's scalar reconstructor in `torch.load`: plain numbers only, never objects."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub" or not isinstance(data, bytes):
        raise ValueError("a numpy value that is not a plain number")
    return float(np.frombuffer(data, dtype, count=1)[0])


# Old and new numpy pickle scalars under different names; nothing else of numpy is let in.
_ALLOWED: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]},
]


def load_foreign(path: Path) -> Any:
    """A foreign pickle's tensors and numbers; SetError for whatever would need any other code."""
    if not path.is_file():
        raise SetError(f"{path}: no such file")
    try:
        # torch warns of pickles of other protocols than its own, of which the caller is told below.
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything, and all of it means the same to the caller
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise SetError(f"{path}: refused, it asks to run {wanted[1]}; only tensors and numbers are read") from error
        if "Weights only load failed" in str(error):
            reason = "a pickle of another protocol than torch's, or one that asks for code"
        else:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SetError(f"{path}: truncated, or not a file of tensors and numbers ({reason})") from error


def dense(path: Path, tensor: Tensor) -> Tensor:
    """A tensor without its gradient; SetError for one that is not an ordinary array of numbers in memory."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kinds = {"quantised": tensor.is_quantized, "nested": tensor.is_nested, "without values": tensor.is_meta}
        kind = next((name for name, holds in kinds.items() if holds), "sparse")
        raise SetError(f"{path}: holds a tensor that is {kind}, not dense: save it as an ordinary tensor of numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        # A few bytes may pretend to be more numbers than there is memory.
        raise SetError(f"{path}: holds a tensor that repeats its numbers: save a copy of it (`.contiguous()`)")
    return tensor.detach()


def load_tensor(path: Path) -> Tensor:
    content = load_foreign(path)
    if not isinstance(content, Tensor):
        raise SetError(f"{path}: holds {type(content).__name__}, not a tensor")
    return dense(path, content)

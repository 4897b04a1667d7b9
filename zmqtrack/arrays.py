"""Arrays of any library, brought to this process's memory; no library is imported to find out."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["describe", "is_array", "to_host"]


def is_array(value: Any) -> bool:
    """Whether ``value`` is a NumPy array or scalar, a tensor, or what can be made an array."""
    return (
        hasattr(value, "shape")
        and hasattr(value, "dtype")
        and (hasattr(value, "__array__") or hasattr(value, "tolist"))
    )


def to_host(array: Any) -> Any:
    """The NumPy array of an :func:`is_array` value; where NumPy is not installed, nested lists.

    Tensors may need gradients, live on a GPU, be sparse, or hold bfloat16 (it becomes float32).
    """
    if hasattr(array, "detach"):  # torch
        array = array.detach()
        if getattr(array, "layout", None) is not None and "strided" not in str(array.layout):
            array = array.to_dense()
        if "bfloat16" in str(array.dtype) or "float8" in str(array.dtype):
            array = array.float()
        array = array.cpu()
        array = array.resolve_conj() if hasattr(array, "resolve_conj") else array
        array = array.resolve_neg() if hasattr(array, "resolve_neg") else array
    try:
        import numpy
    except ImportError:
        return array.tolist()
    host = numpy.asarray(array)
    if host.dtype.kind not in "biufcOSUmM":  # bfloat16 and its like, from JAX's ml_dtypes
        host = host.astype(numpy.float32)
    return host


def loaded_numpy() -> Any:
    """NumPy if this process uses it already, else None."""
    return sys.modules.get("numpy")


def describe(value: Any) -> str:
    """What a value is, for a message: its type, and its shape or the value itself."""
    cls = type(value)
    name = cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, (tuple, list)):
        return f"{name} of shape {tuple(shape)} and dtype {getattr(value, 'dtype', None)}"
    return f"{name} {value!r:.60}"

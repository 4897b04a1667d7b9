"""Images: whatever shows one becomes encoded bytes, in the training process.

PNG is written here with the standard library, because a training process has no Pillow.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from .arrays import describe, is_array, loaded_numpy, to_host

__all__ = ["encode_image", "image_format"]

#: Colour type of a PNG by number of channels: grey, grey and alpha, RGB, RGBA.
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
#: Numbers of channels that an axis is taken for where nobody says what it means.
_LIKELY = (1, 3, 4)

#: Images in one row of the grid that a stack of images becomes.
GRID_COLUMNS = 8


def image_format(data: bytes) -> str | None:
    """``"png"``, ``"jpeg"``, ``"gif"`` or ``"webp"`` by the first bytes; None: none of them."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def encode_image(image: Any, dataformats: str | None = None) -> bytes:
    """The bytes of an image file that shows ``image``.

    Args:
        image: encoded PNG, JPEG, GIF or WebP, and a path of such a file, are taken as they are;
            a PIL image, a matplotlib figure (or ``matplotlib.pyplot``: its current figure), an
            array, a tensor or nested lists become PNG. Pixels are uint8 or other integers from
            0 to 255; bools; or floats, 0 black to 1 full, cut off outside (NaN is black).
        dataformats: the meaning of an array's axes: the letters H and W, C for channels (1 to
            4 of them: grey, grey and alpha, RGB, RGBA), N for a stack of images, which become
            one grid of 8 columns; for instance ``"CHW"`` as in torch, ``"HWC"`` as in NumPy and
            Pillow. None: HW; HWC if the last axis has 1, 3 or 4 entries, else CHW; with four axes
            NHWC or NCHW likewise.

    Raises:
        TypeError: this is no image.
        ValueError: an array whose shape or values are none of the above; a file or bytes in an
            unknown format.
        OSError: the file cannot be read.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _recognised(bytes(image), f"{len(image)} bytes")
    if isinstance(image, (str, os.PathLike)):
        path = Path(os.fspath(image))
        return _recognised(path.read_bytes(), f"the file {path}")
    if is_array(image) and not hasattr(image, "savefig"):
        return _encode_array(to_host(image), dataformats)
    if isinstance(image, (list, tuple)):
        numpy = loaded_numpy()
        if numpy is not None and image and all(map(is_array, image)):
            # Many times quicker, and the usual case: a list of arrays or tensors.
            return _encode_array(numpy.stack([to_host(part) for part in image]), dataformats)
        return _encode_lists(image, dataformats)
    if getattr(image, "__name__", None) == "matplotlib.pyplot":
        image = image.gcf()
    if hasattr(image, "savefig"):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png")
        return buffer.getvalue()
    if hasattr(image, "getbands") and hasattr(image, "save"):  # Pillow
        buffer = io.BytesIO()
        if image.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
            image = image.convert("RGB")
        image.save(buffer, format="PNG")
        return buffer.getvalue()
    raise TypeError(
        f"{describe(image)} is no image: give encoded bytes, a path, a PIL image, a matplotlib "
        "figure, an array or a tensor"
    )


def _recognised(data: bytes, what: str) -> bytes:
    if image_format(data) is None:
        raise ValueError(f"{what}: neither PNG, JPEG, GIF nor WebP (begins with {data[:8]!r})")
    return data


def _axes(shape: tuple[int, ...], dataformats: str | None) -> str:
    """The letters of the axes of an array of this shape, checked."""
    given = f"an image of shape {shape}"
    if dataformats is None:
        if len(shape) == 2:
            axes = "HW"
        elif len(shape) in (3, 4):
            stack = "N" if len(shape) == 4 else ""
            if shape[-1] in _LIKELY:
                axes = f"{stack}HWC"
            elif shape[-3] in _LIKELY:
                axes = f"{stack}CHW"
            else:
                raise ValueError(
                    f"{given}: neither the last nor the first axis can be 1, 3 or 4 channels; "
                    "for a stack of grey images give dataformats='NHW'"
                )
        else:
            raise ValueError(f"{given}: expected 2 axes (HW), 3 (HWC, CHW) or 4 (NHWC, NCHW)")
    else:
        axes = dataformats.upper()
        if len(set(axes)) != len(axes) or not {"H", "W"} <= set(axes) <= set("NHWC"):
            raise ValueError(
                f"dataformats {dataformats!r}: expected H and W, and C or N if there are such "
                "axes, for instance 'CHW'"
            )
        if len(axes) != len(shape):
            raise ValueError(f"{given} has not the {len(axes)} axes of dataformats {axes!r}")
    if 0 in shape:
        raise ValueError(f"{given} is empty")
    if "C" in axes and shape[axes.index("C")] not in _COLOURS:
        raise ValueError(
            f"{given} with dataformats {axes!r} has {shape[axes.index('C')]} channels; "
            "expected 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA)"
        )
    return axes


def _encode_array(array: Any, dataformats: str | None) -> bytes:
    """A NumPy array, or the nested lists that a tensor is where NumPy is missing."""
    if not is_array(array):
        return _encode_lists(array, dataformats)
    import numpy

    axes = _axes(array.shape, dataformats)
    kind = array.dtype.kind
    if kind == "f":
        # In the array's own precision: k/255 then comes back as k.
        pixels = array if array.dtype.itemsize > 2 else array.astype(numpy.float32)
        with numpy.errstate(invalid="ignore", over="ignore"):
            pixels = numpy.clip(numpy.nan_to_num(pixels * 255, posinf=255, neginf=0), 0, 255)
    elif kind == "b":
        pixels = array * numpy.uint8(255)
    elif kind in "ui":
        if array.dtype != numpy.uint8 and (array.min() < 0 or array.max() > 255):
            raise ValueError(
                f"an image of integers from {array.min()} to {array.max()}: expected 0 to 255"
            )
        pixels = array
    else:
        raise TypeError(f"an image is made of numbers, not of dtype {array.dtype}")
    pixels = pixels.astype(numpy.uint8)
    for missing in set("NC") - set(axes):
        pixels, axes = pixels[..., numpy.newaxis], axes + missing
    pixels = pixels.transpose([axes.index(axis) for axis in "NHWC"])
    count, height, width, channels = pixels.shape
    columns = min(count, GRID_COLUMNS)
    rows = math.ceil(count / columns)
    if count < rows * columns:
        blank = numpy.zeros((rows * columns - count, height, width, channels), numpy.uint8)
        pixels = numpy.concatenate([pixels, blank])
    grid = pixels.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    lines = grid.reshape(rows * height, columns * width * channels)
    # Each line of a PNG begins with the number of its filter: 0, none.
    lines = numpy.concatenate([numpy.zeros((len(lines), 1), numpy.uint8), lines], axis=1)
    return _png(lines.tobytes(), columns * width, rows * height, channels)


def _encode_lists(image: Any, dataformats: str | None) -> bytes:
    """Nested lists or tuples of numbers, without NumPy."""
    shape: list[int] = []
    level = image
    while isinstance(level, (list, tuple)) or is_array(level):
        if is_array(level) and not getattr(level, "shape", None):
            break  # a scalar of NumPy's
        if is_array(level):
            level = to_host(level).tolist()
        shape.append(len(level))
        if not level:
            break
        level = level[0]
    axes = _axes(tuple(shape), dataformats)
    flat = [image]
    for size in shape:
        below: list[Any] = []
        for part in flat:
            if is_array(part) and getattr(part, "shape", None):
                part = to_host(part).tolist()
            if not isinstance(part, (list, tuple)) or len(part) != size:
                raise ValueError(f"an image of nested lists whose parts differ in length: {shape}")
            below.extend(part)
        flat = below
    pixels = _pixels(flat)
    stride, strides = 1, dict.fromkeys("NHWC", 0)
    for axis, size in zip(reversed(axes), reversed(shape), strict=True):
        strides[axis], stride = stride, stride * size
    sizes = {"N": 1, "C": 1, **dict(zip(axes, shape, strict=True))}
    count, height, width, channels = (sizes[axis] for axis in "NHWC")
    columns = min(count, GRID_COLUMNS)
    rows = math.ceil(count / columns)
    lines = bytearray()
    for y in range(rows * height):
        lines.append(0)
        for column in range(columns):
            number = y // height * columns + column
            if number >= count:
                lines += bytes(width * channels)
                continue
            start = number * strides["N"] + y % height * strides["H"]
            for x in range(width):
                at = start + x * strides["W"]
                lines += bytes(pixels[at + c * strides["C"]] for c in range(channels))
    return _png(bytes(lines), columns * width, rows * height, channels)


def _pixels(flat: list[Any]) -> bytes:
    numbers = [v.item() if not isinstance(v, (int, float)) and is_array(v) else v for v in flat]
    for number in numbers:
        if not isinstance(number, (int, float)):
            raise TypeError(f"an image is made of numbers, not of {describe(number)}")
    if all(isinstance(number, bool) for number in numbers):
        return bytes(255 * number for number in numbers)
    if any(isinstance(number, float) for number in numbers):
        # The small amount brings k/255 of a 32-bit float back to k.
        return bytes(
            int(min(max(number * 255 + 1e-4, 0.0), 255.0)) if number == number else 0
            for number in numbers
        )
    if min(numbers) < 0 or max(numbers) > 255:
        raise ValueError(
            f"an image of integers from {min(numbers)} to {max(numbers)}: expected 0 to 255"
        )
    return bytes(numbers)


def _png(lines: bytes, width: int, height: int, channels: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(data, zlib.crc32(name))
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    # 8 bits a channel; the zeros: deflate, adaptive filters, not interlaced.
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(lines, 4)),
            chunk(b"IEND", b""),
        )
    )

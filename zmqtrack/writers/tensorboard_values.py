"""Tags, numbers, images and bins as TensorBoard's writers take them, as :class:`zmqtrack.Run` does.

What torch or tensorboardX takes is taken: neither is asked, and neither is imported.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..arrays import is_array, to_host
from ..histogram import MAX_BINS
from ..image import encode_image
from ._common import note

__all__ = [
    "bins",
    "boxes",
    "fewer_bins",
    "figure",
    "number",
    "pixels",
    "raw_bins",
    "real",
    "stack",
    "tag",
]


def tag(name: Any) -> Any:
    """A tag; the two that torch takes beside text are None, the empty one, and UTF-8."""
    if name is None:
        return ""
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def number(value: Any) -> Any:
    """A number; in tensorboardX it may stand alone in lists."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _listed(values: Any) -> list[Any]:
    values = to_host(values) if is_array(values) else values
    return list(values.tolist() if is_array(values) else values)


# --- images ----------------------------------------------------------------------------------


def pixels(image: Any) -> Any:
    """An image as torch understands it: 1 is full, and of uint8 alone 255."""
    if not is_array(image) or hasattr(image, "savefig"):
        return image
    host = to_host(image)
    if not is_array(host) or (host.dtype.kind not in "iuOc") or host.dtype == "uint8":
        return host
    host = host.real if host.dtype.kind == "c" else host
    return host.astype("float32")


def stack(images: Sequence[Any], dataformats: str | None) -> tuple[list[Any], str | None]:
    """A list of images, and the meaning of its axes: those of one image, or of all."""
    if dataformats is not None and "N" not in dataformats.upper():
        dataformats = f"N{dataformats}"
    return [pixels(image) for image in images], dataformats


def boxes(image: bytes, corners: Any, labels: Sequence[str] | str | None, rescale: float) -> bytes:
    """The image with boxes drawn on it.

    Raises:
        ImportError: Pillow is not installed.
    """
    from PIL import Image, ImageDraw

    picture = Image.open(io.BytesIO(image)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    rows = _listed(corners)
    names = [labels] if isinstance(labels, str) else labels
    if names is not None and len(names) != len(rows):
        note(
            "add_image_with_boxes(labels)",
            f"{len(names)} labels for {len(rows)} boxes: drawn without labels",
        )
        names = None
    for place, row in enumerate(rows):
        left, top, right, bottom = (float(edge) for edge in row)
        left, right = sorted((left, right))
        top, bottom = sorted((top, bottom))
        draw.rectangle((left, top, right, bottom), outline="red", width=2)
        if names is not None:
            draw.text((left + 3, top + 2), str(names[place]), fill="red")
    size = int(picture.width * rescale), int(picture.height * rescale)
    return encode_image(picture if rescale == 1 else picture.resize(size))


def figure(drawn: Any) -> Any:
    """A figure's pixels, HWC."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())[..., :3]


# --- histograms ------------------------------------------------------------------------------


def real(values: Any) -> Any:
    """Values of a histogram; of complex ones NumPy counts the real parts."""
    return values.real if "complex" in str(getattr(values, "dtype", "")) else values


def bins(given: Any) -> Any:
    """Bins as NumPy takes them: of any number, and with edges that repeat."""
    if isinstance(given, str):
        return given
    if hasattr(given, "__index__") and not getattr(given, "shape", ()):
        count = int(given)
        if count > MAX_BINS:
            note("add_histogram(bins)", f"{count} bins; {MAX_BINS} are made, the most there may be")
        return min(count, MAX_BINS)
    edges = [float(edge) for edge in _listed(given)]
    if any(left > right for left, right in pairwise(edges)):
        raise ValueError("the edges of bins must not decrease")
    edges = list(dict.fromkeys(edges))
    if len(edges) - 1 > MAX_BINS:
        note(
            "add_histogram(bins)",
            f"{len(edges) - 1} bins; neighbours are put together until there are {MAX_BINS}",
        )
        together = -(-(len(edges) - 1) // MAX_BINS)
        edges = [*edges[:-1:together], edges[-1]]
    return edges


def fewer_bins(summary: dict[str, Any], most: int) -> dict[str, Any]:
    """Put neighbouring bins together until there are ``most`` or fewer."""
    if most < 1:
        raise ValueError(f"max_bins must be at least 1, not {most}")
    counts, edges = summary["counts"], summary["edges"]
    together = -(-len(counts) // most)
    cuts = [*range(0, len(counts), together), len(counts)]
    return {
        **summary,
        "counts": [sum(counts[left:right]) for left, right in pairwise(cuts)],
        "edges": [edges[cut] for cut in cuts],
    }


def raw_bins(low: float, limits: Any, counts: Any) -> tuple[list[float], list[Any]]:
    """Edges and counts of a histogram that is given by the right edge of each bucket.

    If the first count is 0, that bucket only gives the left edge of the next one; else the first
    bucket begins at ``low``.

    Raises:
        ValueError: not as many limits as counts.
    """
    rights = [float(limit) for limit in _listed(limits)]
    numbers = _listed(counts)
    if len(rights) != len(numbers):
        raise ValueError(
            f"{len(numbers)} bucket_counts need as many bucket_limits, not {len(rights)}"
        )
    if not numbers:
        return [], []
    if numbers[0] == 0 and len(numbers) > 1:
        return rights, numbers[1:]
    left = float(low)
    return [left if left < rights[0] else rights[0] - (abs(rights[0]) or 1.0), *rights], numbers

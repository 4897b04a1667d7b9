from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zmqtrack.image
from zmqtrack.image import encode_image, image_format


def pixels(encoded: bytes) -> Any:
    picture = Image.open(io.BytesIO(encoded))
    picture.load()
    return np.asarray(picture)


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, format=format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_encoded_images_and_their_files_are_taken_as_they_are(format: str, tmp_path: Path) -> None:
    data = encoded(format)
    path = tmp_path / "image"
    path.write_bytes(data)
    assert image_format(data) == format.lower()
    assert encode_image(data) == data
    assert encode_image(bytearray(data)) == data
    assert encode_image(path) == encode_image(str(path)) == data


def test_bytes_and_files_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither PNG, JPEG, GIF nor WebP"):
        encode_image(b"BM......")
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(ValueError, match=r"x\.png"):
        encode_image(tmp_path / "x.png")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor, np.ndarray.tolist])
def test_arrays_tensors_and_lists_keep_each_pixel(make: Any, channels: int) -> None:
    image = np.random.default_rng(channels).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    want = image.squeeze()
    assert (pixels(encode_image(make(image))) == want).all()
    assert (pixels(encode_image(make(image), "hwc")) == want).all()
    assert (pixels(encode_image(make(image.transpose(2, 0, 1)))) == want).all()
    assert (pixels(encode_image(make(image.transpose(2, 1, 0)), "CWH")) == want).all()
    assert (pixels(encode_image(make(image[..., 0]))) == image[..., 0]).all()


def test_floats_are_scaled_by_255_and_cut_off() -> None:
    values = [[-1.0, 0.0, 0.5, 1.0, 7.0, float("inf"), float("-inf"), float("nan")]]
    want = [[0, 0, 127, 255, 255, 255, 0, 0]]
    for dtype in (np.float16, np.float32, np.float64):
        assert pixels(encode_image(np.array(values, dtype=dtype))).tolist() == want
    assert pixels(encode_image(values)).tolist() == want
    assert pixels(encode_image(torch.tensor(values, dtype=torch.bfloat16))).tolist() == want


def test_every_byte_survives_its_way_through_a_float() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    as_float = torch.tensor(levels).float() / 255
    assert (pixels(encode_image(as_float)) == levels).all()
    assert (pixels(encode_image(as_float.tolist())) == levels).all()
    assert (pixels(encode_image(levels / 255)) == levels).all()


def test_floats_become_what_torchs_writer_makes_of_them() -> None:
    from torch.utils.tensorboard.summary import image as torch_image

    tensor = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(3)) * 1.2 - 0.1
    theirs = torch_image("x", tensor, dataformats="CHW").value[0].image.encoded_image_string
    assert (pixels(encode_image(tensor, "CHW")) == pixels(theirs)).all()


def test_a_stack_becomes_the_grid_that_torch_makes() -> None:
    from torch.utils.tensorboard.summary import image as torch_image

    stack = torch.rand(11, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    theirs = torch_image("x", stack, dataformats="NCHW").value[0].image.encoded_image_string
    assert (pixels(encode_image(stack, "NCHW")) == pixels(theirs)).all()
    assert (pixels(encode_image(stack)) == pixels(theirs)).all()
    assert (pixels(encode_image(stack.tolist(), "NCHW")) == pixels(theirs)).all()
    last = stack.permute(0, 2, 3, 1)
    assert (pixels(encode_image(last)) == pixels(theirs)).all()


def test_bools_are_black_and_white_and_integers_levels() -> None:
    for make in (np.asarray, torch.tensor, list):
        assert pixels(encode_image(make([[True, False]]))).tolist() == [[255, 0]]
        assert pixels(encode_image(make([[0, 1, 255]]))).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F"])
def test_pil_images_of_every_mode_become_png(mode: str) -> None:
    data = encode_image(Image.new(mode, (3, 2)))
    assert image_format(data) == "png"
    assert pixels(data).shape[:2] == (2, 3)


def test_matplotlib_figures_are_rendered() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([1, 2, 3])
    assert pixels(encode_image(figure)).shape == (50, 100, 4)


@pytest.mark.parametrize(
    ("image", "dataformats", "message"),
    [
        (np.zeros(3), None, r"shape \(3,\).*expected 2 axes"),
        (np.zeros((2, 5, 5)), None, "neither the last nor the first"),
        (np.zeros((5, 5, 5)), "CHW", r"5 channels; expected 1 \(grey\)"),
        (np.zeros((5, 5)), "CHW", "has not the 3 axes of dataformats 'CHW'"),
        (np.zeros((5, 5, 3)), "HXC", "'HXC': expected H and W"),
        (np.zeros((5, 0)), None, "is empty"),
        (np.full((2, 2), 256), None, "from 256 to 256: expected 0 to 255"),
        ([[1, 300]], None, "from 1 to 300: expected 0 to 255"),
        ([[1, 2], [3]], None, "differ in length"),
        ([], None, "shape"),
    ],
)
def test_what_cannot_be_an_image_is_told(image: Any, dataformats: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_image(image, dataformats)


@pytest.mark.parametrize("image", [None, 3.0, {"a": 1}, [["a"]], np.array([["a"]])])
def test_what_is_no_image_is_a_type_error(image: Any) -> None:
    with pytest.raises(TypeError, match="image"):
        encode_image(image)


def test_a_list_of_arrays_is_not_taken_apart_number_by_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zmqtrack.image, "_encode_lists", None)
    parts = [np.full((4, 5, 3), value, np.uint8) for value in (1, 2)]
    png = encode_image(parts, "NHWC")
    np.testing.assert_array_equal(pixels(png), np.concatenate(parts, axis=1))
    with pytest.raises(ValueError, match="same shape"):
        encode_image([*parts, parts[0][1:]], "NHWC")

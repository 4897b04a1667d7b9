"""The three transforms that the examples name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Compose:
    def __init__(self, transforms: list[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class ToTensor:
    def __call__(self, image: Any) -> Any:
        return image


class Normalize:
    def __init__(self, mean: Any, std: Any) -> None:
        self.mean, self.std = mean[0], std[0]

    def __call__(self, image: Any) -> Any:
        return (image - self.mean) / self.std

"""CIFAR-10's shape: images of 3 × 32 × 32 in 10 classes."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class CIFAR10(torch.utils.data.Dataset):
    """``STUB_IMAGES`` images (400) to train with, a tenth of them, but at most 40, to test with.

    From here on all random numbers of the script depend on its site alone: two runs of it agree.
    """

    def __init__(
        self,
        root: str,
        train: bool = True,
        download: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)  # as a download does
        count = int(os.environ.get("STUB_IMAGES", "400"))
        count = count if train else min(count // 10, 40)
        random = torch.Generator().manual_seed(int(train))
        self.labels = torch.randint(0, 10, (count,), generator=random)
        noise = torch.rand(count, 3, 32, 32, generator=random)
        self.images = noise * 0.3 + self.labels.view(-1, 1, 1, 1) / 15
        self.transform = transform
        torch.set_num_threads(1)
        torch.manual_seed(zlib.crc32(_site().encode()))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return self.transform(image) if self.transform else image, int(self.labels[index])


def _site() -> str:
    """The folder of a script that NVFLARE runs has its site's name."""
    return next((part for part in sys.argv[0].split("/") if part.startswith("app_")), "")

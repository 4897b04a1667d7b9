"""What the PyTorch examples train: a small CNN on scikit-learn's digits, 1,797 real images.

Nothing in here knows of zmqtrack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

# The model is so small that more threads would only get into each other's way.
torch.set_num_threads(1)


def load_data(test_share: float = 0.2, seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """Training and test data: images of 1x8x8 from 0 to 1, and their labels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    tests = round(test_share * len(order))
    test, train = order[:tests], order[tests:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def split(data: Dataset[tuple[Tensor, ...]], shares: Sequence[float], seed: int = 0):
    """``data`` in parts of the given shares of it, which add up to 1."""
    return random_split(data, shares, torch.Generator().manual_seed(seed))


def make_model() -> nn.Sequential:
    """About 38,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train_epoch(
    model: nn.Module, data: DataLoader, optimizer: torch.optim.Optimizer
) -> Iterator[float]:
    """Train for one pass over ``data``, handing out the loss of each step."""
    model.train()
    for images, labels in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Loss and accuracy on ``data``."""
    model.eval()
    images, labels = next(iter(DataLoader(data, batch_size=len(data))))
    scores = model(images)
    loss = nn.functional.cross_entropy(scores, labels)
    return loss.item(), (scores.argmax(dim=1) == labels).double().mean().item()


def some_images(data: Dataset[tuple[Tensor, ...]], count: int = 16) -> Tensor:
    """The first images of ``data``, as one stack of them: N x 1 x 8 x 8."""
    return torch.stack([data[i][0] for i in range(count)])

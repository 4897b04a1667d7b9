"""A linear classifier of scikit-learn's small images of digits, and each client's share of them."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

CLASSES = np.arange(10)


def load_data(partition: int, partitions: int) -> tuple[np.ndarray, ...]:
    """A client's images and labels: to train with, then to test with."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images[partition::partitions] / 16, labels[partition::partitions]
    cut = len(images) * 4 // 5
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


def make_model(weights: list[np.ndarray] | None = None) -> SGDClassifier:
    """Of the given weights, else all zero."""
    model = SGDClassifier(loss="log_loss", alpha=1e-3, random_state=0)
    model.classes_ = CLASSES
    model.coef_, model.intercept_ = weights or [np.zeros((10, 64)), np.zeros(10)]
    return model


def loss(model: SGDClassifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy."""
    chances = model.predict_proba(images)[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chances, 1e-12, 1)).mean())

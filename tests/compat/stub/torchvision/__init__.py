"""Stands for torchvision in examples that only want CIFAR-10: random images of its shape.

The images of a class are brighter than those of the one before it, so that there is something to
learn.
"""

from . import datasets, transforms

__all__ = ["datasets", "transforms"]

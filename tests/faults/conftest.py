"""The same fixtures as all other tests."""

from __future__ import annotations

"""Examples to copy from. ``python -m examples.demo`` is the whole of it, at work."""

"""A wall clock that is off by what stands in a file, read anew at each look.

On PYTHONPATH it reaches every Python process of a test. (libfaketime would be another way; its
0.9.10 makes Python's ``time.sleep`` fail with EINVAL when the monotonic clock is left alone.)
"""

from __future__ import annotations

import os
import time
from pathlib import Path

if "CLOCK_OFFSET_FILE" in os.environ:
    _file = Path(os.environ["CLOCK_OFFSET_FILE"])
    _time = time.time

    def _off() -> float:
        return _time() + float(_file.read_text() or 0)

    time.time = _off

"""What a logging call costs and how fast records arrive, beside other loggers, in one run.

``make bench``, or ``python -m benchmarks --help``. It prints one table and writes the same as
JSON. Read ratios rather than seconds: machines differ, and so do two minutes of one machine.
"""

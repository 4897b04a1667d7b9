"""``make compat``: other people's code, run with the real tool and with the import changed.

Each *case* is a command that is run twice, in a folder of its own each time: once as it is, which
logs with the real tool, and once with the import changed, which logs through a real ``zmqtrackd``
to JSON lines and to the adapter of the same tool. Then the tool's own reader reads both
(:mod:`compat.facts`), and :mod:`compat.judge` says of each record of the real tool whether it is
here too, was announced (counted as ``unsupported_…`` by the daemon), or went astray in silence.
There must be none of the last kind: the exit code is then 1.

Other people's code is not in this project. It comes from installed packages, from source
distributions, or from checkouts in the folder that ``ZMQTRACK_COMPAT_CHECKOUTS`` names, with each
checkout in a folder of the repository's name. What is not there is skipped, with the reason.

**To add a suite** write a module ``compat/suite_NAME.py`` with a function ``cases(sources:
Sources)`` that yields :class:`compat.cases.Case` and :class:`compat.cases.Skipped`, and add its
name to ``SUITES`` in ``compat/__main__.py``. A case says whose syntax the code has, and has a
function that puts the code into an empty folder and returns the command. With ``here`` set that
function changes the import: :func:`compat.translate.copy` does it in a copied source, and
``command(…, alias=TOOL)`` of :mod:`compat.cases` for a framework that imports the tool by itself.
A case finds its site in ``ZMQTRACK_SITE``; one that has several parts gives each a site of its own
and writes ``outcomes.jsonl`` (see :class:`compat.cases.Case`).
"""

"""Federated averaging over three sites, each logging in another syntax, into four trackers.

``python -m examples.demo`` starts all of it: a daemon (``zmqtrackd``), the aggregating server
(``server.py``) and the sites (``site_*.py``), each a process of its own; then it reads back from
the trackers what has arrived.
"""

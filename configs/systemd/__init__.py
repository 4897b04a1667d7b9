"""Installed as ``zmqtrack.units``: what ``zmqtrack service install`` puts in place."""

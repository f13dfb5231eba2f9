"""Operators with more than one implementation: the reference in torch, and faster plug-ins."""

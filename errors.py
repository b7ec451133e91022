"""The one error type that users meet."""

from __future__ import annotations


class InfercError(Exception):
    """Something a person can act on: one line that says what was wrong, where, and what to do."""

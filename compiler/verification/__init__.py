"""Backends side by side on the same inputs: what `inferc verify` does."""

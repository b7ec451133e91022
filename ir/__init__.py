"""The graph IR: types, ops, numerics, rewriting. Imports nothing else of inferc."""

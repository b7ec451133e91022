"""Passes over modules: each file has `run(module, target) -> module`; `compiler.pipeline` puts them in order."""

"""Commands of `inferc`, one file each. A file's `register` adds its command to the program."""

from __future__ import annotations

from . import bench, perplexity, profile, verify

REGISTERED = (bench.register, perplexity.register, profile.register, verify.register)

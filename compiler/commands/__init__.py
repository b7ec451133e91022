"""Commands of `inferc`, one file each. A file's `register` adds its command to the program."""

from __future__ import annotations

from . import profile, verify

REGISTERED = (profile.register, verify.register)

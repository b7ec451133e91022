"""Where the time of a compiled model goes: what `inferc profile` does."""

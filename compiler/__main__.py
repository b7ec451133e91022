"""`python -m inferc.compiler` is the `inferc` command."""

from .cli import main

main()

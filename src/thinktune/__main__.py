"""`python -m thinktune` is the `thinktune` command."""

from thinktune.cli import main

main()

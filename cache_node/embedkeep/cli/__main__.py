"""`python -m embedkeep.cli` is `embedkeep`."""

from embedkeep.cli import main

main()

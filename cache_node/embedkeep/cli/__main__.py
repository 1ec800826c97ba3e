"""`python -m embedkeep.cli` is `embedkeep`."""

from embedkeep.__main__ import main

main()

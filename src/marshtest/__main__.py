"""python -m marshtest: the command line."""

from marshtest.cli import main

main()

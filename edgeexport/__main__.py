"""`python -m edgeexport`."""

from edgeexport.cli import main

main()

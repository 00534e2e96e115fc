"""`python -m keyhaul.cli`, for processes that start nodes without looking for the script."""

from keyhaul.cli import main

main()

"""`python -m gtp_fast` is `gtp-fast`."""

from gtp_fast.cli import main

main()

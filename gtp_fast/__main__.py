"""`python -m gtp_fast` is `gtp-fast`."""

from gtp_fast.cli.main import main

main()

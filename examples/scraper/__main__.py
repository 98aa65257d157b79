"""`python -m examples.scraper`."""

import sys

from examples.scraper.command.cli import main

if __name__ == "__main__":  # the parser's processes import this module under another name
    sys.exit(main())

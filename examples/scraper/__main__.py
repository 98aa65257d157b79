"""`python -m examples.scraper`."""

import sys

from examples.scraper.cli import main

if __name__ == "__main__":  # processes that parse import it under another name
    sys.exit(main())

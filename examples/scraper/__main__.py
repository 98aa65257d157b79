"""`python -m examples.scraper`."""

import sys

from examples.scraper.cli import main

sys.exit(main())

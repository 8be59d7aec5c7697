"""Run the command line as `python -m meanfield`."""

import sys

from meanfield.cli import main

sys.exit(main())

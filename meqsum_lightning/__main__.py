"""`python -m meqsum_lightning`."""

import sys

from meqsum_lightning.cli import main

sys.exit(main())

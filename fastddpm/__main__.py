"""`python -m fastddpm ...` is `fastddpm ...`; so is `torchrun -m fastddpm ...`, on several ranks."""

import sys

from .train.cli import main

sys.exit(main())

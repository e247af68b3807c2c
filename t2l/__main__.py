"""`python -m t2l` is the same as the command `t2l`."""

import sys

from .cli import main

sys.exit(main())

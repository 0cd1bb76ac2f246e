"""``python -m imagegate``."""

import sys

from imagegate.cli import main

sys.exit(main())

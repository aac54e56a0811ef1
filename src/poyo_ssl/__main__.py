"""``python -m poyo_ssl``."""

import sys

from poyo_ssl.cli import main

sys.exit(main())

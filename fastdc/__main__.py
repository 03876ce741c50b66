"""``python -m fastdc`` is the command ``fastdc``."""

import sys

from fastdc.cli import main

if __name__ == "__main__":
    sys.exit(main())

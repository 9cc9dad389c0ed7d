"""python -m fastkd is the console command."""

import sys

from fastkd.cli.main import main

sys.exit(main())

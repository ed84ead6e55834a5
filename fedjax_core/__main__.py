"""`python -m fedjax_core` is `fedjax-core`."""

import sys

from fedjax_core.cli import main

sys.exit(main())

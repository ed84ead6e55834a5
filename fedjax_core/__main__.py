"""`python -m fedjax_core` is `fedjax-core`."""

import sys

from fedjax_core.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m r2rank_jax.cli` is the `r2rank` command."""

import sys

from r2rank_jax.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m peftsweep`, the same program as `peftsweep`."""

from peftsweep.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

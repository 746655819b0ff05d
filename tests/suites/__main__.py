"""`python -m tests.suites [name…]`: see `run`."""

from tests.suites.run import main

if __name__ == "__main__":
    raise SystemExit(main())

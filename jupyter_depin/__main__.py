"""`python -m jupyter_depin`: the same as `jupyter depin`."""

from jupyter_depin.cli import main

raise SystemExit(main())

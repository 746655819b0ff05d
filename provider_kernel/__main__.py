"""`python -m provider_kernel`: the same as `provider-kernel`."""

from provider_kernel.cli import main

raise SystemExit(main())

"""Kernel specs that rent. Written by the demo for itself and by `jupyter depin kernel` for the user."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

_LOGO = "logo-svg.svg"


def write_kernel_spec(
    folder: Path, home: Path, display_name: str = "Rented kernel (depin)", tickets: Sequence[str] = ()
) -> None:
    """Write a kernel spec that rents; its `argv` works too, for clients that ignore provisioners.

    `tickets`: the providers of this spec, instead of those in the home's config.toml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"home": str(home), **({"tickets": list(tickets)} if tickets else {})}
    asked = [word for ticket in tickets for word in ("--ticket", ticket)]
    spec = {
        "argv": [
            sys.executable,
            "-m",
            "jupyter_depin.kernel",
            "-f",
            "{connection_file}",
            "--home",
            str(home),
            *asked,
        ],
        "display_name": display_name,
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {
            "debugger": True,
            "supported_encryption": ["curve"],
            "kernel_provisioner": {"provisioner_name": "depin-provisioner", "config": config},
        },
    }
    (folder / "kernel.json").write_text(json.dumps(spec, indent=1), "utf-8")
    # Without one, launchers show a big R: that of another language.
    (folder / _LOGO).write_bytes(files("jupyter_depin").joinpath("etc", _LOGO).read_bytes())

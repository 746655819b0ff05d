"""The Jupyter Server extension: shows rentals to the browser and lets it settle them. Light to import.

It holds no money logic and keeps no state: rentals come from the consumer through `source.Rentals`. On server
shutdown it settles nothing, for that is the provisioner's cleanup; two settlers would race.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Name the extension's application. Called by Jupyter Server, which found this package in its configuration."""
    from jupyter_depin.server.extension import DepinExtension

    return [{"module": "jupyter_depin.server.extension", "app": DepinExtension}]

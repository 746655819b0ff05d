"""A notebook kernel that can live anywhere, paid by the second. Imports nothing: it must stay light."""

__version__ = "0.1.0"


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """Tell `jupyter labextension develop` where the built front end lies. Called by JupyterLab's tools only."""
    return [{"src": "labextension", "dest": "@jupyter-depin/lab"}]

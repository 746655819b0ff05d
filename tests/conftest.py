"""pytest-jupyter owns asynchronous tests, everywhere: one event loop per test, and Jupyter's folders kept apart."""

pytest_plugins = ["pytest_jupyter.jupyter_server"]

"""`jupyter depin demo`: everything on this machine, for show and yet real.

Starts the embedded chain, deploys the contracts, funds a wallet, starts one provider agent as a process of its own
(`parts`), and then JupyterLab with a rented kernel (`lab`), or one notebook without Lab (`notebook`).
"""

from jupyter_depin.demo.lab import run_lab, run_program
from jupyter_depin.demo.notebook import run_notebook
from jupyter_depin.demo.parts import KERNEL_NAME

__all__ = ["KERNEL_NAME", "run_lab", "run_notebook", "run_program"]

"""jupyter_kernel_test, the conformance suite of the kernel protocol, over a rented kernel, in our own environment."""

from __future__ import annotations

from collections.abc import Iterator

import jupyter_kernel_test
import pytest
from jupyter_client.provisioning import KernelProvisionerFactory


@pytest.fixture(autouse=True, scope="module")
def rented() -> Iterator[None]:
    """Every kernel that is started here is a rented one, from an agent on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "depin-loopback")
        KernelProvisionerFactory.clear_instance()
        yield
    KernelProvisionerFactory.clear_instance()


class TestRentedKernel(jupyter_kernel_test.KernelTests):
    """The suite's own tests, inherited."""

    kernel_name = "python3"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = ({"code": "1+2+3", "result": "6"},)
    code_display_data = (
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
    )
    code_history_pattern = "1?2*"
    # Not "range": IPython 9 numbers the running session 0 there, which this suite does not know, locally either.
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


def test_the_kernel_was_rented(request: pytest.FixtureRequest) -> None:
    from jupyter_depin.consumer.runtime import Runtime

    assert Runtime.get().snapshot()

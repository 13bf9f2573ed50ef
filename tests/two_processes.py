"""Two JAX processes on this machine, each of which runs a function of a test's module."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path


@contextlib.contextmanager
def reporting(module, *arguments, timeout):
    """Start ``module.one_of_two_processes(coordinator, number, *arguments)`` in each of two.

    Gives what waits for both, and returns what they have printed last, read as JSON.
    """
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        coordinator = f"localhost:{listener.getsockname()[1]}"
    here = Path(__file__).parent
    folders = [here, here.parent, *(path.parent for path in here.glob(f"*/{module}.py"))]
    code = f"import sys, {module}; {module}.one_of_two_processes(*sys.argv[1:])"
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, coordinator, str(number), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]

    def reports():
        outputs = [process.communicate(timeout=timeout) for process in processes]
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors
        return [json.loads(output.splitlines()[-1]) for output, _ in outputs]

    try:
        yield reports
    finally:
        for process in processes:
            process.kill()

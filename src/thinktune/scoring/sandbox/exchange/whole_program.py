"""Runs a whole program on one input. Its standard streams are files, so that it finds real descriptors, and what it
wrote is there however it ended."""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
import types

from thinktune.scoring.sandbox.exchange.pipes import take_over_pipes

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from typing import IO, Any

_MOST = 16 * 2**20  # bytes of output that are handed back


def main() -> None:
    incoming, outgoing = take_over_pipes()
    message = json.loads(incoming.readline())
    read, written, errors = (tempfile.TemporaryFile() for _ in range(3))  # noqa: SIM115 - they are open as long as the process
    read.write(message.pop("input").encode(errors="replace"))
    read.seek(0)
    child = os.fork()
    if not child:
        incoming.close()
        outgoing.close()
        for descriptor, file in enumerate((read, written, errors)):
            os.dup2(file.fileno(), descriptor)
            file.close()
        become_program(message)
        return  # as a program ends: exit handlers run, threads are waited for, streams are flushed
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outgoing.write(json.dumps(report(status, written, errors)) + "\n")
    outgoing.flush()


def become_program(message: dict[str, str]) -> None:
    """Run the code as `python solution.py` would. An exit by `sys.exit` is none by an error, whatever its status."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = ["solution.py"]
    try:
        for name in ("given", "source"):
            exec(compile(message[name], "solution.py", "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        pass


def report(status: int, written: IO[bytes], errors: IO[bytes]) -> dict[str, Any]:
    if os.fstat(written.fileno()).st_size > _MOST:
        return {"failed": f"writes more than {_MOST // 2**20} MB"}
    if status:
        return {"failed": f"ends with {_last_line(errors) or f'status {status}'}"}
    written.seek(0)
    return {"output": base64.b64encode(written.read()).decode()}


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(max(os.fstat(errors.fileno()).st_size - 4096, 0))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""

"""The Python modules of hearth's protos, made when they are needed.

Nothing is installed or written into the repository: the modules live in a temporary directory as long as the process.
In a project of your own, run protoc once in your build and check in or package what it makes:

    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/hearth/v1/*.proto
"""

import atexit
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"


def generate() -> None:
    """Makes `hearth.v1.*_pb2` and `hearth.v1.*_pb2_grpc` importable."""
    out = tempfile.mkdtemp(prefix="hearth-protos-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    files = sorted(str(path) for path in PROTO.glob("hearth/v1/*.proto"))
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + files) != 0:
        raise SystemExit("protoc failed; see above")
    sys.path.insert(0, out)


generate()

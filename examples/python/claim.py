#!/usr/bin/env python3
"""Claims a warm sandbox, works in it, gives it back.

    examples/python/run.sh --socket /run/hearth/hearth.sock --pool python
    examples/python/run.sh --server node-1:9470 --ca ca.crt --cert tls.crt --key tls.key --pool python

Written from the protos alone. Copy what you need: `Hearth` is all that talks to hearthd.
"""

import argparse
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import protos  # noqa: F401  (makes the imports below possible)
from hearth.v1 import claims_pb2, claims_pb2_grpc, node_pb2, node_pb2_grpc, sandboxes_pb2, sandboxes_pb2_grpc

# One piece of a file or of stdin: hearth takes 64 KiB.
PIECE = 64 * 1024


class Hearth:
    """hearthd on this node."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.claims = claims_pb2_grpc.ClaimsStub(channel)
        self.sandboxes = sandboxes_pb2_grpc.SandboxesStub(channel)
        self.node = node_pb2_grpc.NodeStub(channel)

    def epoch(self) -> int:
        """The node's current epoch. A real allocator takes its own from its leader election."""
        return max(1, self.node.Info(node_pb2.InfoRequest(), timeout=5).epoch)

    # api.md: claim
    def claim(self, pool: str, **personalization) -> tuple[str, claims_pb2.ClaimResponse]:
        """Claims a sandbox of the pool; the claim's id and the answer."""
        request = claims_pb2.ClaimRequest(
            claim_id=str(uuid.uuid4()),
            pool=pool,
            holder=claims_pb2.Holder(namespace="examples", name="claim.py"),
            epoch=self.epoch(),
            ttl=Duration(seconds=600),
            personalization=claims_pb2.Personalization(**personalization),
            on_empty=claims_pb2.ON_EMPTY_WAIT,
            wait_timeout=Duration(seconds=30),
        )
        # Whatever breaks: the same request again joins the first or gets the same answer, never a second sandbox.
        return request.claim_id, patiently(lambda: self.claims.Claim(request, timeout=60))
    # api.md: end

    def release(self, claim_id: str) -> None:
        """Ends the claim; its sandbox is destroyed soon after."""
        request = claims_pb2.ReleaseRequest(claim_id=claim_id, epoch=self.epoch())
        patiently(lambda: self.claims.Release(request, timeout=10))

    def sandbox(self, claim_id: str, access_token: str) -> "Sandbox":
        """The claim's sandbox, for whoever holds its token."""
        return Sandbox(self.sandboxes, claim_id, access_token)


# api.md: connect
def over_socket(path: str) -> grpc.Channel:
    """The node's Unix socket: known by our user id."""
    # gRPC would name the server after the socket's path, which is no valid name over HTTP/2.
    return grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")])


def over_tls(server: str, ca: Path, cert: Path, key: Path) -> grpc.Channel:
    """TCP: known by our certificate."""
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), cert.read_bytes())
    return grpc.secure_channel(server, credentials)
# api.md: end


class Sandbox:
    """A claimed sandbox. Needs the claim's token only: it may live in another process than the allocator."""

    def __init__(self, stub: sandboxes_pb2_grpc.SandboxesStub, claim_id: str, access_token: str) -> None:
        self.stub = stub
        self.claim_id = claim_id
        self.metadata = [("authorization", f"Bearer {access_token}")]

    # api.md: exec
    def execute(self, *command: str, stdin: bytes = b"") -> Iterator[tuple[str, bytes | int]]:
        """Runs a command: ("stdout", bytes) and ("stderr", bytes) as they come, ("exit", code) at the end."""

        def requests():
            start = sandboxes_pb2.ExecStart(claim_id=self.claim_id, command=command, stdin=bool(stdin))
            yield sandboxes_pb2.ExecRequest(start=start)
            for at in range(0, len(stdin), PIECE):
                yield sandboxes_pb2.ExecRequest(stdin=stdin[at : at + PIECE])
            # The end of the requests is the end of stdin.

        for answer in self.stub.Exec(requests(), metadata=self.metadata):
            match answer.WhichOneof("response"):
                case "stdout":
                    yield "stdout", answer.stdout
                case "stderr":
                    yield "stderr", answer.stderr
                case "exited":
                    yield "exit", answer.exited.code
    # api.md: end

    # api.md: code
    def run(self, code: str, context: str = "") -> Iterator[tuple[str, object]]:
        """Runs code in the pool's interpreter: output as it comes, ("result", {MIME type: bytes}), ("end", how)."""
        request = sandboxes_pb2.RunCodeRequest(claim_id=self.claim_id, code=code, context=context)
        forms: dict[str, bytes] = {}
        for answer in self.stub.RunCode(request, metadata=self.metadata):
            match answer.WhichOneof("response"):
                case "stdout":
                    yield "stdout", answer.stdout
                case "stderr":
                    yield "stderr", answer.stderr
                case "piece" if answer.piece.end:
                    kind = sandboxes_pb2.BundleKind.Name(answer.piece.end).removeprefix("BUNDLE_KIND_").lower()
                    yield kind, forms
                    forms = {}
                case "piece":
                    forms[answer.piece.mime_type] = forms.get(answer.piece.mime_type, b"") + answer.piece.data
                case "error":
                    forms = {}
                    yield "error", answer.error.traceback
                case "ended":
                    yield "end", sandboxes_pb2.CodeStatus.Name(answer.ended.status).removeprefix("CODE_STATUS_")
    # api.md: end

    def write(self, path: str, content: bytes) -> int:
        """Writes a file, which appears whole; how many bytes."""

        def requests():
            start = sandboxes_pb2.WriteFileStart(claim_id=self.claim_id, path=path, parents=True)
            yield sandboxes_pb2.WriteFileRequest(start=start)
            for at in range(0, len(content), PIECE):
                yield sandboxes_pb2.WriteFileRequest(chunk=content[at : at + PIECE])
            yield sandboxes_pb2.WriteFileRequest(eof=True)

        return self.stub.WriteFile(requests(), metadata=self.metadata).size_bytes

    def read(self, path: str) -> bytes:
        """The content of a file."""
        request = sandboxes_pb2.ReadFileRequest(claim_id=self.claim_id, path=path)
        return b"".join(answer.chunk for answer in self.stub.ReadFile(request, metadata=self.metadata))


# api.md: retry
def patiently(call, attempts: int = 10):
    """Calls until hearthd stops asking for patience: a status with RetryInfo says when to come back."""
    while True:
        attempts -= 1
        try:
            return call()
        except grpc.RpcError as error:
            _, delay = explain(error)
            if delay is None or attempts == 0:
                raise
            time.sleep(delay)


def explain(error: grpc.RpcError) -> tuple[str, float | None]:
    """hearth's reason ("POOL_EMPTY", ...) and when to retry in seconds; ("", 1.0) if hearthd itself was away."""
    reason, delay = "", None
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            delay = retry.retry_delay.ToTimedelta().total_seconds()
    if not reason and error.code() == grpc.StatusCode.UNAVAILABLE:
        delay = 1.0
    return reason, delay
# api.md: end


CODE = """
import os, platform
print("hello from", platform.node(), "with", os.environ["GREETING"])
print(sum(n * n for n in range(1000)))
"""


def work(sandbox: Sandbox) -> int:
    """Something to do inside; the exit code of the code."""
    written = sandbox.write("/work/main.py", CODE.encode())
    print(f"wrote {written} bytes to /work/main.py")
    code = 1
    for kind, value in sandbox.execute("python3", "/work/main.py"):
        if kind == "exit":
            code = value
        else:
            stream = sys.stdout if kind == "stdout" else sys.stderr
            stream.write(value.decode(errors="replace"))
            stream.flush()
    for kind, value in sandbox.execute("sh", "-c", "tr a-z A-Z > /work/loud", stdin=b"read me back"):
        if kind == "exit" and value != 0:
            raise SystemExit(f"tr ended with {value}")
    for kind, value in sandbox.run("x = 6\nx * 7"):
        if kind == "result":
            print("the answer is", value["text/plain"].decode())
    print("read", sandbox.read("/work/loud").decode(), "from /work/loud")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", default="/run/hearth/hearth.sock", help="hearthd's socket")
    parser.add_argument("--server", help="hearthd over TCP, host:port, instead of its socket; needs the three below")
    parser.add_argument("--ca", type=Path, help="CA of hearthd's certificate")
    parser.add_argument("--cert", type=Path, help="our certificate")
    parser.add_argument("--key", type=Path, help="its key")
    parser.add_argument("--pool", default="python", help="a pool with python as its interpreter")
    arguments = parser.parse_args()
    if arguments.server:
        channel = over_tls(arguments.server, arguments.ca, arguments.cert, arguments.key)
    else:
        channel = over_socket(arguments.socket)
    hearth = Hearth(channel)
    try:
        claim_id, claimed = hearth.claim(arguments.pool, env={"GREETING": "a warm welcome"}, hostname="example")
        source = claims_pb2.Source.Name(claimed.source).removeprefix("SOURCE_").lower()
        total = claimed.timings.total.ToTimedelta().total_seconds() * 1000
        print(f"claimed {claimed.sandbox_id} ({source}) in {total:.1f} ms")
        try:
            return work(hearth.sandbox(claim_id, claimed.access_token))
        finally:
            hearth.release(claim_id)
            print("released")
    except grpc.RpcError as error:
        reason, _ = explain(error)
        print(f"{reason or error.code().name}: {error.details()}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

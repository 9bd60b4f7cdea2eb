"""What the engine does while it works, received as OpenTelemetry (OTLP over HTTP) on loopback.

Every Dagger client exports its engine's spans and logs to OTEL_EXPORTER_OTLP_ENDPOINT, whichever
engine it speaks to, so this one receiver serves them all.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

# The engine plans a whole chain at once and says so in spans that end at once; those in which a
# step of it is really worked on, rather than taken from the cache, have names that start so. The
# other steps take no time, and are told of so late that they would count for the next stage.
_WORK: Final = ("resume from", "resume import", "resume withExec")


@dataclass(frozen=True)
class Watcher:
    """Who is told: of each piece of output, and of each step that was not in the cache."""

    output: Callable[[str], None]
    ran: Callable[[str], None]


@contextlib.contextmanager
def receiver(watcher: Watcher) -> Iterator[bool]:
    """Tell `watcher` what the engine does, for as long as the context is open.

    Yields whether it will be told anything: where the user already sends telemetry somewhere
    (``dagger run`` does), it goes on going there alone.
    """
    if any(name.startswith("OTEL_EXPORTER_OTLP") for name in os.environ):
        yield False
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(watcher))
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.1}
    )
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    variables = {
        # One by one: Dagger's clients export logs only to an endpoint that is named for logs.
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{endpoint}/v1/traces",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{endpoint}/v1/logs",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_LIVE": "1",
    }
    os.environ.update(variables)
    try:
        yield True
    finally:
        for name in variables:
            os.environ.pop(name, None)
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(watcher: Watcher) -> type[BaseHTTPRequestHandler]:
    seen: set[bytes] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/logs":
                _tell_logs(body, watcher)
            elif self.path == "/v1/traces":
                _tell_spans(body, watcher, seen)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Keep the server's own lines off the user's terminal."""

    return Handler


def _tell_logs(body: bytes, watcher: Watcher) -> None:
    for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                if record.body.string_value:
                    watcher.output(record.body.string_value)


def _tell_spans(body: bytes, watcher: Watcher, seen: set[bytes]) -> None:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                # A live span is sent twice, at its start and at its end.
                if span.name.startswith(_WORK) and span.span_id not in seen:
                    seen.add(span.span_id)
                    watcher.ran(span.name.removeprefix("resume "))

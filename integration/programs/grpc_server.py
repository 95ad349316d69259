"""A gRPC server without generated code: every message is its bytes.

Arguments: port, and the name that it answers with.
"""

import sys
import threading
from concurrent import futures

import grpc

THREADS = 16
SERVICE = "weft.test.Echo"


def main(port, name):
    cancelled = threading.Event()

    def who(_request, _context):
        return name.encode()

    def unary(request, context):
        received = dict(context.invocation_metadata())
        context.send_initial_metadata([("x-initial", received.get("x-sent", ""))])
        context.set_trailing_metadata([("x-trailing", received.get("x-sent", "")), ("x-trailing-bin", bytes(range(256)))])
        return request

    def fail(request, context):
        context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x05details"), ("x-why", "test")])
        code = {status.value[0]: status for status in grpc.StatusCode}[int(request)]
        context.abort(code, "näher erklärt: 100 %")

    def hang(_request, context):
        context.add_callback(cancelled.set)
        cancelled.wait(30)
        return b""

    def was_cancelled(_request, _context):
        was = cancelled.wait(10)
        cancelled.clear()
        return b"yes" if was else b"no"

    def count_up(request, _context):
        for number in range(int(request)):
            yield str(number).encode()

    def total(requests, _context):
        return str(sum(len(request) for request in requests)).encode()

    def echo(requests, _context):
        yield from requests

    handlers = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
        "CountUp": grpc.unary_stream_rpc_method_handler(count_up),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
    }
    options = [("grpc.max_receive_message_length", 64 << 20)]
    server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=options)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


main(sys.argv[1], sys.argv[2])

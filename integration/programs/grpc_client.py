"""Talks gRPC with grpc_server.py.

`cases TARGET` prints a line for everything that was as it should be. `say TARGET TEXT` prints the text that came back. `split TARGET COUNT [HEADER=VALUE]` makes so many calls on one
connection and prints who answered how often.
"""

import collections
import queue
import sys

import grpc

SERVICE = "/weft.test.Echo/"
DEADLINE_S = 10


def cases(channel):
    unary = channel.unary_unary(SERVICE + "Unary")
    response, call = unary.with_call(b"hello", metadata=[("x-sent", "value")], timeout=DEADLINE_S)
    assert response == b"hello", response
    assert ("x-initial", "value") in [tuple(pair) for pair in call.initial_metadata()], call.initial_metadata()
    trailing = {key: value for key, value in call.trailing_metadata()}
    assert trailing["x-trailing"] == "value" and trailing["x-trailing-bin"] == bytes(range(256)), trailing
    print("unary with metadata and trailers", flush=True)

    for size in [0, 1, 16384, 1 << 20, 20 << 20]:
        assert unary(b"x" * size, timeout=DEADLINE_S) == b"x" * size
    print("messages up to 20 MiB", flush=True)

    fail = channel.unary_unary(SERVICE + "Fail")
    for code in range(1, 17):
        try:
            fail(str(code).encode(), timeout=DEADLINE_S)
            raise AssertionError(f"status {code} did not arrive")
        except grpc.RpcError as error:
            assert error.code().value[0] == code, error
            assert error.details() == "näher erklärt: 100 %", error
            trailing = {key: value for key, value in error.trailing_metadata()}
            assert trailing["grpc-status-details-bin"] == b"\x08\x05details" and trailing["x-why"] == "test", trailing
    try:
        channel.unary_unary("/weft.test.None/Such")(b"", timeout=DEADLINE_S)
        raise AssertionError("a method that does not exist was answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    print("every error status with details", flush=True)

    try:
        channel.unary_unary(SERVICE + "Hang")(b"", timeout=0.3)
        raise AssertionError("the deadline did not end the call")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert channel.unary_unary(SERVICE + "WasCancelled")(b"", timeout=DEADLINE_S) == b"yes"
    print("a deadline ends the call on both sides", flush=True)

    numbers = list(channel.unary_stream(SERVICE + "CountUp")(b"2000", timeout=DEADLINE_S))
    assert numbers == [str(number).encode() for number in range(2000)]
    print("server streaming", flush=True)

    parts = (b"x" * 1000 for _ in range(2000))
    assert channel.stream_unary(SERVICE + "Total")(parts, timeout=DEADLINE_S) == b"2000000"
    print("client streaming", flush=True)

    requests = queue.SimpleQueue()
    answers = channel.stream_stream(SERVICE + "Echo")(iter(requests.get, None), timeout=DEADLINE_S)
    for number in range(200):
        requests.put(str(number).encode())
        assert next(answers) == str(number).encode()
    requests.put(None)
    assert list(answers) == []
    print("bidirectional streaming, in lock step", flush=True)

    futures = [unary.future(str(number).encode(), timeout=DEADLINE_S) for number in range(500)]
    assert [future.result() for future in futures] == [str(number).encode() for number in range(500)]
    print("500 calls at once", flush=True)


def split(channel, count, metadata):
    who = channel.unary_unary(SERVICE + "Who")
    answers = collections.Counter(who(b"", metadata=metadata, timeout=DEADLINE_S).decode() for _ in range(count))
    for name, answered in sorted(answers.items()):
        print(name, answered, flush=True)


def main(verb, target, *rest):
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        if verb == "cases":
            cases(channel)
        elif verb == "say":
            print(channel.unary_unary(SERVICE + "Unary")(rest[0].encode(), timeout=DEADLINE_S).decode(), flush=True)
        else:
            split(channel, int(rest[0]), [tuple(header.split("=", 1)) for header in rest[1:]])


main(*sys.argv[1:])

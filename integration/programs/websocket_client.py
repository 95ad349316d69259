"""Talks WebSocket with websocket_server.py, and prints a line for everything that was as it should be."""

import asyncio
import os
import sys

from websockets.asyncio import client
from websockets.exceptions import ConnectionClosed

MESSAGE_BYTES_MAX = 16 << 20
CONNECTIONS = 50


def connect(uri):
    return client.connect(uri, max_size=MESSAGE_BYTES_MAX, subprotocols=["weft.test"])


async def main(uri, hold_s):
    async with connect(uri) as connection:
        assert connection.subprotocol == "weft.test", connection.subprotocol
        await connection.send("hello")
        assert await connection.recv() == "hello"
        print("text", flush=True)
        for size in [0, 1, 125, 126, 65535, 65536, 8 << 20]:
            message = os.urandom(size)
            await connection.send(message)
            assert await connection.recv() == message, size
        print("binary up to 8 MiB", flush=True)
        await connection.send([b"one ", b"two ", b"three"])
        assert await connection.recv() == b"one two three"
        print("fragments", flush=True)
        for _ in range(10):
            await (await connection.ping(b"x" * 125))
        print("ping and pong", flush=True)
        # Open for long enough that the test sees what the mesh says of it.
        await asyncio.sleep(hold_s)
    for code, reason in [(1000, "bye"), (1001, "away"), (4321, "own words")]:
        async with connect(uri) as connection:
            await connection.send(f"close {code} {reason}")
            try:
                await connection.recv()
                raise AssertionError("not closed")
            except ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (code, reason), closed
    print("close codes", flush=True)
    connections = await asyncio.gather(*[connect(uri) for _ in range(CONNECTIONS)])
    await asyncio.gather(*[connection.send(str(number)) for number, connection in enumerate(connections)])
    answers = await asyncio.gather(*[connection.recv() for connection in connections])
    assert answers == [str(number) for number in range(CONNECTIONS)], answers
    await asyncio.gather(*[connection.close() for connection in connections])
    print("many at once", flush=True)


asyncio.run(main(sys.argv[1], float(sys.argv[2])))

"""A WebSocket server that echoes. With the message `close CODE REASON` it closes instead."""

import asyncio
import sys

from websockets.asyncio.server import serve

MESSAGE_BYTES_MAX = 16 << 20


async def echo(connection):
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            _, code, reason = message.split(" ", 2)
            await connection.close(int(code), reason)
            return
        await connection.send(message)


async def main(port):
    async with serve(echo, None, port, max_size=MESSAGE_BYTES_MAX, subprotocols=["weft.test"]) as server:
        print("ready", flush=True)
        await server.serve_forever()


asyncio.run(main(int(sys.argv[1])))

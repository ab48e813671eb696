"""Workers scripted in Python, for what the simulated worker does not do: `scripted_worker.py PORTS SCRIPT`.

All ports share one event loop, so counts over several workers are of one moment. A request asks for tokens as
`/generate` does. The script, a JSON object, may set:

- `gap_ms`: pause before each token
- `refuse`: share of requests that get 503 "The request queue is full.", and `seed` of that draw
- `hang_up`: close every connection after a stream without having announced it

A request with `"poison": true` gets no answer: the connection is closed on it.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Counts:
    requests: int = 0
    refused: int = 0
    finished: int = 0
    in_flight: int = 0
    peak: int = 0
    connections: int = 0

    def begin(self) -> None:
        self.requests += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def end(self, finished: bool) -> None:
        self.finished += finished
        self.in_flight -= 1


class Script:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.gap = settings.get("gap_ms", 0) / 1000
        self.refuse = settings.get("refuse", 0.0)
        self.hang_up = settings.get("hang_up", False)
        self.draw = random.Random(settings.get("seed", 0))
        self.total = Counts()
        self.per_port: dict[int, Counts] = {}

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        counts = (self.total, self.per_port[port])
        for count in counts:
            count.connections += 1
        try:
            while await self.exchange(reader, writer, counts):
                pass
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: tuple[Counts, ...]
    ) -> bool:
        """One request; false when the connection is to end."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        method, path, _ = lines[0].split()
        if method == "get":
            writer.write(whole(200, self.about(path)))
            return True
        if self.draw.random() < self.refuse:
            for count in counts:
                count.requests += 1
                count.refused += 1
            writer.write(whole(503, {"object": "error", "message": "The request queue is full.", "code": 503}))
            return True
        asked = json.loads(body)
        if asked.get("poison"):
            return False
        return await self.answer(reader, writer, asked, counts)

    def about(self, path: str) -> dict[str, Any]:
        if path != "/script/stats":
            return {"model_path": "sim-model", "served_model_name": "sim-model"}
        ports = {str(port): asdict(counts) for port, counts in self.per_port.items()}
        return {**asdict(self.total), "ports": ports}

    async def answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: dict[str, Any],
        counts: tuple[Counts, ...],
    ) -> bool:
        for count in counts:
            count.begin()
        # As engines do: a client that leaves frees its place.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            said = await self.speak(writer, asked, leaving)
        finally:
            if not leaving.done():
                leaving.cancel()
                await asyncio.wait([leaving])
        # Counted before the last bytes go out: no later request can come before this.
        for count in counts:
            count.end(said)
        if said and asked.get("stream"):
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            return not self.hang_up
        if said:
            writer.write(whole(200, {"text": "done", "meta_info": {}}))
        return said

    async def speak(self, writer: asyncio.StreamWriter, asked: dict[str, Any], leaving: asyncio.Future[bytes]) -> bool:
        """Says all tokens; false when the client has left before."""
        streaming = asked.get("stream")
        if streaming:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
            writer.write(b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(asked["sampling_params"]["max_new_tokens"]):
            if self.gap and (await asyncio.wait([leaving], timeout=self.gap))[0]:
                return False
            if streaming:
                writer.write(chunk(f'data: {{"text": "{at}"}}\n\n'.encode()))
        return True


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(status: int, document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    reason = {200: "OK", 503: "Service Unavailable"}[status]
    top = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return top.encode() + body


async def main(ports: int, settings: dict[str, Any]) -> None:
    script, urls = Script(settings), []
    for _ in range(ports):
        server = await asyncio.start_server(script.connection, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        script.per_port[port] = Counts()
        urls.append(f"http://127.0.0.1:{port}")
    print("listening on", json.dumps(urls), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), json.loads(sys.argv[2])))

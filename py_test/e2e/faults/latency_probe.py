"""Times requests over one kept connection, in a process of its own: `latency_probe.py URL COUNT PAUSE`."""

from __future__ import annotations

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

BODY = json.dumps({"text": "hi", "sampling_params": {"max_new_tokens": 1}})


def main(url: str, count: int, pause: float) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    took = []
    for _ in range(count):
        started = time.perf_counter()
        connection.request("POST", "/generate", BODY, {"content-type": "application/json"})
        with connection.getresponse() as reply:
            reply.read()
            assert reply.status == 200, reply.status
        took.append(time.perf_counter() - started)
        time.sleep(pause)
    print("took", json.dumps(took), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

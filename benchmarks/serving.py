"""`mltr serve` under load: compared with the same network offline, and at five times its capacity.

    python benchmarks/serving.py RUN PHOTOS --out serving.json

Offline: a `Predictor` over the bytes of the photos in a separate process, before and after. Served:
clients on the loopback interface that each send the next photo after the last response. They cost
little, with raw sockets and prepared requests; `sender_cores` is the number of cores that they take
from the server. Overload: requests at a fixed rate, regardless of the responses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mltr.data.walk import find_images
from mltr.files.writing import write_json

MOST_CONNECTIONS = 600  #: maximum connections of the overload; requests beyond are only counted


class Connection:
    """A client with a persistent connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: Any = None

    async def post(self, request: bytes) -> int:
        """Send a prepared request and read the whole response; return its status."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        return int(head[9:12])

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def prepare(photos: list[bytes]) -> list[bytes]:
    head = (
        b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: image/jpeg\r\nContent-Length: "
    )
    return [head + b"%d\r\n\r\n" % len(photo) + photo for photo in photos]


def summarise(latencies: list[float]) -> dict[str, float]:
    if not latencies:
        return {"count": 0}
    p50, p99 = np.percentile(latencies, [50, 99])
    return {"count": len(latencies), "p50_ms": 1000 * p50, "p99_ms": 1000 * p99}


async def closed_loop(
    port: int, requests: list[bytes], clients: int, seconds: float
) -> dict[str, Any]:
    """Keep a number of clients busy; return throughput, latencies and errors."""
    source, latencies, statuses = cycle(requests), [], Counter()
    sent = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal sent
        connection = Connection(port)
        while time.perf_counter() < end:
            started = time.perf_counter()
            sent += 1
            try:
                status = await connection.post(next(source))
            except (OSError, EOFError) as error:
                statuses[type(error).__name__] += 1
                connection.close()
                continue
            statuses[str(status)] += 1
            if status == 200:
                latencies.append(time.perf_counter() - started)
        connection.close()

    started, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.perf_counter() - started
    return {
        "images_per_s": len(latencies) / took,
        "sent": sent,
        "answers": dict(statuses),
        "sender_cores": (time.process_time() - used) / took,
        **summarise(latencies),
    }


async def open_loop(
    port: int, requests: list[bytes], rate: float, seconds: float, memory: Any
) -> dict[str, Any]:
    """Send at a fixed rate; return responses by status, latencies, and the server's memory."""
    source, statuses, tasks = cycle(requests), Counter(), set()
    latencies: dict[int, list[float]] = {200: [], 503: []}
    free = [Connection(port) for _ in range(MOST_CONNECTIONS)]
    held = [memory()]

    async def send(connection: Connection) -> None:
        started = time.perf_counter()
        try:
            status = await connection.post(next(source))
            latencies.setdefault(status, []).append(time.perf_counter() - started)
            statuses[str(status)] += 1
        except (OSError, EOFError) as error:
            statuses[type(error).__name__] += 1
            connection.close()
        free.append(connection)

    started = time.perf_counter()
    number = 0
    while (passed := time.perf_counter() - started) < seconds:
        for _ in range(int(passed * rate) - number):
            number += 1
            if not free:
                statuses["not sent: no connection free"] += 1
                continue
            task = asyncio.create_task(send(free.pop()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if passed > len(held):
            held.append(memory())
        await asyncio.sleep(0.002)
    if tasks:
        await asyncio.wait(set(tasks), timeout=60)
    for connection in free:
        connection.close()
    return {
        "requests_per_s": number / seconds,
        "answers": dict(statuses),
        "served": summarise(latencies[200]),
        "refused": summarise(latencies[503]),
        "memory_mb": {"first": held[0], "middle": held[len(held) // 2], "last": memory()},
    }


def measure_offline(run: str, engine: str | None, photos: list[bytes], seconds: float) -> float:
    """Return the images/s of a `Predictor` in a separate process."""
    code = (
        "import sys, time, pickle, mltr; photos = pickle.load(sys.stdin.buffer);"
        f"p = mltr.load({run!r}, 'cpu', engine={engine!r}); p(photos[:64]);"
        "done = 0; t = time.perf_counter()\n"
        f"while (took := time.perf_counter() - t) < {seconds}: p(photos); done += len(photos)\n"
        "print(done / took)"
    )
    import pickle

    found = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(photos), stdout=subprocess.PIPE, check=True
    )
    return float(found.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("photos", metavar="PHOTOS", help="folder of JPEGs")
    parser.add_argument("--engine", default="torch", help="offline and served; see mltr serve")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--overload", type=float, default=5, help="multiple of the measured throughput"
    )
    parser.add_argument("--out", default="serving.json")
    args, options = parser.parse_known_args()
    files = [path for path in find_images(args.photos) if path.suffix.lower() in (".jpg", ".jpeg")]
    photos = [path.read_bytes() for path in files[:512]]
    requests = prepare(photos)
    quarter = max(5.0, args.seconds / 4)

    engine = None if args.engine == "ray" else args.engine
    offline = [measure_offline(args.run, engine, photos, quarter)]
    command = [sys.executable, "-m", "mltr", "serve", args.run, "--port", "0", "--json", "-"]
    server = subprocess.Popen(
        [*command, "--device", "cpu", "--engine", args.engine, *options],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    text = ""
    while not text.rstrip().endswith("}"):
        text += server.stdout.readline()
    port = int(json.loads(text)["address"].rpartition(":")[2])

    def memory() -> float:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    try:
        asyncio.run(closed_loop(port, requests, args.clients, 3))
        served = asyncio.run(closed_loop(port, requests, args.clients, args.seconds))
        rate = args.overload * served["images_per_s"]
        overloaded = asyncio.run(open_loop(port, requests, rate, args.seconds / 2, memory))
        after = asyncio.run(closed_loop(port, requests, args.clients, quarter))
    finally:
        server.terminate()
        server.wait(60)
    offline.append(measure_offline(args.run, engine, photos, quarter))
    content = {
        "offline_images_per_s": offline,
        "served": served,
        "share_of_offline": served["images_per_s"] / fmean(offline),
        "p99_over_p50": served["p99_ms"] / served["p50_ms"],
        "overload": overloaded,
        "after_overload": after,
        "engine": args.engine,
        "server_options": options,
    }
    write_json(args.out, content)
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    main()

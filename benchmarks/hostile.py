"""`mltr serve` among hostile clients: response times of honest ones, and the server's memory.

    python benchmarks/hostile.py RUN --out hostile.json

First holds many connections open with unfinished heads and times an honest client. Then sends
honest and hostile requests of all kinds, eight at a time, and reads the server's memory, which may
grow during the first fifth, until all threads have worked. Ends with Ctrl-C. All connections are on
the loopback interface.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mltr.files.writing import write_json

AT_A_TIME = 8
WARM_UP = 0.2  #: share of the requests for warm-up
PATIENCE_S = 60


def jpeg(side: int) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((side, side), 80).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def png_of_zeros(width: int, height: int, depth: int) -> bytes:
    """Return a grey PNG that decodes to a thousand times its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width * depth // 8 + 1) * height), 9)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def post(body: bytes, kind: str = "image/jpeg", path: str = "/v1/predict", more: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body


def form(*files: bytes, charset: str = "") -> bytes:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="i"; filename="a.png"\r\n\r\n' + file
        for file in files
    ]
    return post(b"\r\n".join([*parts, b"--b--\r\n"]), f"multipart/form-data; boundary=b{charset}")


def prepare() -> dict[str, bytes]:
    """Return the requests by name; names of honest ones start with `honest`."""
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    photo, deep = jpeg(640), png_of_zeros(8000, 5000, 16)
    text = b'--b\r\nContent-Disposition: form-data; name="i"\r\n\r\n' + b"\xff" * 1_000_000
    return {
        "honest photo": post(photo),
        "honest form": form(photo, jpeg(300)),
        "honest page": get,
        "head without end": b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 1_000_000,
        "no HTTP": b"\x16\x03\x01" + bytes(500),
        "cut head": b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        "cut body": post(photo)[:-100],
        "upgrade": get[:-2] + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "many requests at once": get * 500,
        "unknown name": post(photo).replace(b"localhost", b"example.org"),
        "other site": post(photo, more="Origin: http://example.org\r\n"),
        "unknown option": post(photo, path="/v1/predict?topp=1"),
        "wrong items": post(b'{"images":[' + b"1," * 1_000_000 + b"1]}", "application/json"),
        "wrong item": post(b'{"images":[' + b"1," * 9_000 + b"1]}", "application/json"),
        "deep JSON": post(b"[" * 500_000, "application/json"),
        "punycode": post(text, "multipart/form-data; boundary=b; charset=punycode"),
        "text part": post(text, "multipart/form-data; boundary=b"),
        "many parts": post(b"--b\r\n" * 200_000, "multipart/form-data; boundary=b"),
        "deep images": form(*[deep] * 32),
        "deep image": form(deep),
        "truncated": post(photo[: len(photo) // 2]),
        "bomb": post(png_of_zeros(30_000, 30_000, 1), "image/png"),
        "too large": post(bytes(33_000_000)),
    }


async def send(port: int, request: bytes, is_cut: bool = False) -> str:
    """Send a request on a new connection; return the status, or how the connection ended.

    With `is_cut`, close it without waiting for a response.
    """
    writer = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            if is_cut:
                await asyncio.sleep(0.05)
                return "left"
            head = await reader.readuntil(b"\r\n")
            return head.split()[1].decode()
    except TimeoutError:
        return "no answer"
    except (OSError, EOFError):
        return "closed"
    finally:
        if writer is not None:
            writer.transport.abort()


async def hold_open(port: int, count: int, seconds: float, request: bytes) -> dict[str, Any]:
    """Time an honest client while `count` connections stay silent."""
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in held:
        writer.write(b"GET / HTTP/1.1\r\n")
    took, statuses, end = [], Counter(), time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        started = time.perf_counter()
        statuses[await send(port, request)] += 1
        took.append(time.perf_counter() - started)
        await asyncio.sleep(0.1)
    for _, writer in held:
        writer.transport.abort()
    return {"connections": count, "answers": dict(statuses), "longest_s": max(took)}


async def mix(port: int, requests: dict[str, bytes], total: int, memory: Any) -> dict[str, Any]:
    """Send the requests in rotation; return the outcomes by kind, and the server's memory."""
    answers: dict[str, Counter[str]] = {name: Counter() for name in requests}
    waits, sizes = [], []
    numbers = iter(range(total))
    order = list(requests)
    rng = np.random.default_rng(0)

    async def client() -> None:
        for number in numbers:
            if number % len(order) == 0:
                rng.shuffle(order)
            name = order[number % len(order)]
            started = time.perf_counter()
            answers[name][await send(port, requests[name], name.startswith("cut"))] += 1
            if name.startswith("honest"):
                waits.append(time.perf_counter() - started)
            if number >= WARM_UP * total and number % max(1, total // 200) == 0:
                sizes.append(memory())

    await asyncio.gather(*(client() for _ in range(AT_A_TIME)))
    quarters = [float(np.median(quarter)) for quarter in np.array_split(sizes, 4)]
    return {
        "requests": total,
        "answers": {name: dict(found) for name, found in answers.items()},
        "honest_p50_s": float(np.percentile(waits, 50)),
        "honest_longest_s": max(waits),
        # Medians of quarters, as single readings include images that are being decoded.
        "memory_mb": quarters,
        "growth": quarters[-1] / quarters[0],
    }


def allow_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--hold", type=float, default=15, metavar="SECONDS")
    parser.add_argument("--files", type=int, metavar="N", help="limit on the server's open files")
    parser.add_argument("--out", default="hostile.json")
    args, options = parser.parse_known_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = args.connections + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    command = [sys.executable, "-m", "mltr", "serve", args.run, "--port", "0", "--json", "-"]
    log = Path(args.out).with_suffix(".log")
    with log.open("w") as errors:
        server = subprocess.Popen(
            [*command, "--device", "cpu", *options],
            stdout=subprocess.PIPE, stderr=errors, text=True,
            preexec_fn=lambda: allow_files(args.files) if args.files else None,
        )  # fmt: skip
    text = ""
    while not text.rstrip().endswith("}"):
        line = server.stdout.readline()
        if not line:
            raise SystemExit(log.read_text())
        text += line
    port = int(json.loads(text)["address"].rpartition(":")[2])

    def memory() -> float:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    try:
        requests = prepare()
        photo = requests["honest photo"]
        idle = asyncio.run(hold_open(port, args.connections, args.hold, photo))
        content = {"idle": idle, "mixed": asyncio.run(mix(port, requests, args.requests, memory))}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(90)
    lines = log.read_text().splitlines()
    content["log"] = {
        "bytes": log.stat().st_size,
        "other_lines": [line for line in lines if not line.startswith("{")],
        "levels": dict(Counter(json.loads(line)["level"] for line in lines if line[:1] == "{")),
        "exit_code": server.returncode,
    }
    write_json(args.out, content)
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()

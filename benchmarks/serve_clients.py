"""A service in a process of its own, and clients that ask it."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil


@contextmanager
def service(model: Path | None) -> Iterator[tuple[str, psutil.Process, float]]:
    """A service in a process of its own: its address, the process, seconds until it was ready."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "medqua.serve", "app", *([str(model)] if model else [])]
    command += ["listen.port=0", "limits.requests_per_second=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                entry = json.loads(line) if line.startswith("{") else {}
                if entry.get("event") == "listening":
                    break
            url = f"http://{entry['host']}:{entry['port']}"
            threading.Thread(target=process.stderr.read, daemon=True).start()
            httpx.get(f"{url}/readyz").raise_for_status()
            yield url, psutil.Process(process.pid), time.perf_counter() - start
        finally:
            process.terminate()
            process.wait(60)


def ask(url: str, files: list[bytes], clients: int) -> tuple[float, list[float]]:
    """Have files answered by clients at once; return images a second and each one's seconds."""
    sessions = [httpx.Client(base_url=url, timeout=120) for _ in range(clients)]
    kinds = {b"\x89PNG": "image/png"}

    def one(number: int) -> list[float]:
        took = []
        for content in files[number::clients]:
            kind = kinds.get(content[:4], "application/dicom")
            start = time.perf_counter()
            response = sessions[number].post(
                "/v1/findings", content=content, headers={"Content-Type": kind}
            )
            took.append(time.perf_counter() - start)
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code}: {response.text[:300]}")
        return took

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        seconds = [second for took in threads.map(one, range(clients)) for second in took]
    rate = len(files) / (time.perf_counter() - start)
    for session in sessions:
        session.close()
    return rate, seconds

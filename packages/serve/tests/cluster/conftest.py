"""Ray clusters of several nodes on this machine, whose nodes can be killed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import pytest

# Ray has an environment of its own: hatch run cluster:test
collect_ignore_glob = ["test_*.py"] if find_spec("ray") is None else []

NODES = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 100 << 20}
cluster = Cluster(
    initialize_head=True, head_node_args={**small, "num_cpus": 0, "include_dashboard": False}
)
others = [cluster.add_node(**small, num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n" and others:
        cluster.remove_node(others.pop(), allow_graceful=False)
        print("killed", flush=True)
cluster.shutdown()
"""

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
    "RAY_SERVE_SOCKET_REUSE_PORT_ENABLED": "1",  # the nodes here share one machine's port
}  # fmt: skip


@dataclass
class Nodes:
    """A head without a core for work, and two other nodes of one each."""

    process: subprocess.Popen[str]
    address: str

    def kill(self) -> None:
        """Kill a node that is not the head, with all that runs on it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "killed\n"


@pytest.fixture
def environment() -> dict[str, str]:
    return ENVIRONMENT


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    process = subprocess.Popen(
        [sys.executable, "-c", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Nodes(process, process.stdout.readline().strip())
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])

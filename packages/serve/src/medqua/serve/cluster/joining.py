"""Joining a Ray cluster, or starting one on this machine: by token, and silent to Ray's makers."""

import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from medqua.core.errors import ConfigError
from medqua.serve.settings import Settings

OBJECTS_MIB = 128
"""Room for objects of a cluster started here, in MiB: paths and answers, never images."""

SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
CLOSED = {"RAY_AUTH_MODE": "token"}
"""Ray's ports are on all addresses of a machine, and run what a holder of the token sends."""


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Be part of a cluster for the time of a context.

    Args:
        address: Of the head node, such as 10.0.0.5:6379; None starts a cluster of this machine,
            which ends with the context and leaves no files.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers there.
    """
    for name, value in {**SILENT, **CLOSED}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("a cluster needs Ray: pip install 'medqua-serve[ray]'") from None
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    _knock(address)
    with ExitStack() as stack:
        ours: dict[str, Any] = {}
        if address is None:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="medqua-ray-", ignore_cleanup_errors=True)
            )
            ours = {
                "_temp_dir": folder,
                "include_dashboard": False,
                "object_store_memory": OBJECTS_MIB << 20,
            }
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **ours)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no cluster answers at {address}: {type(error).__name__}") from None
        stack.callback(ray.shutdown)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield


def _knock(address: str | None) -> None:
    """Find out whether anything listens at an address; Ray itself would try for minutes.

    Raises:
        ConfigError: Nothing does.
    """
    if address in (None, "auto"):
        return
    host, _, port = str(address).rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no cluster answers at {address} ({type(error).__name__}): give HOST:PORT of its head"
        ) from None


def plain(settings: Settings) -> dict[str, Any]:
    """Return settings as plain values, which a node checks as it would check a file of them."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))  # paths
    return _without_none(document)


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value is not None
    }

"""The service on all machines of a cluster: the same app in replicas, more of them under load.

Each replica has its own workers and decoders beside it. What a replica has not answered when its
node dies, its client has to send again: nothing was accepted. So jobs, reports to an archive and
the C-STORE door, which accept, stay with the one service that owns the spool.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from medqua.core.errors import ConfigError, MedQuaError
from medqua.serve.cluster.joining import plain
from medqua.serve.http.app import create_app
from medqua.serve.http.metrics import log_to_stderr
from medqua.serve.http.service import Service
from medqua.serve.settings import Settings

NAME = "medqua"
"""Name of the application in the cluster."""

START_SECONDS = 600.0
"""Seconds after which a replica that is not ready is started anew."""


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are."""

    least: int = 1
    """Without load."""
    most: int = 4
    """Under load."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"replicas {self.least} to {self.most}: give 1 <= least <= most")


def check(settings: Settings) -> None:
    """Refuse settings that replicas cannot keep.

    Raises:
        ConfigError: What is accepted would be lost with a replica, or a limit would not hold.
    """
    if settings.storage.spool is not None:
        raise ConfigError(
            "storage.spool: jobs, reports to an archive and C-STORE belong to one service that "
            "owns its spool; run `medqua-serve app` for them, and the cluster without a spool"
        )
    if settings.listen.client_authorities is not None:
        raise ConfigError(
            "listen.client_authorities: replicas do not see client certificates; have them "
            "checked by what stands before the cluster"
        )


def deploy(model: Path, settings: Settings, replicas: Replicas) -> str:
    """Start the replicas on the cluster that this process has joined; wait until they are ready.

    Args:
        model: Bundle or export; at this path on every node.
        settings: As of the service; `listen` is where each node with a replica listens.
        replicas: How many.

    Returns:
        Its address on this node.

    Raises:
        ConfigError: Settings that replicas cannot keep.
    """
    check(settings)
    listen = settings.listen
    ours = {"host": listen.host, "port": listen.port}
    if listen.certificate is not None:
        ours |= {"ssl_certfile": str(listen.certificate), "ssl_keyfile": str(listen.private_key)}
    serve.start(proxy_location="EveryNode", http_options=ours)
    serve.run(application(plain(settings), model.resolve(), replicas), name=NAME)
    return f"{'https' if listen.certificate else 'http'}://{listen.host}:{listen.port}"


def application(document: Mapping[str, Any], model: Path, replicas: Replicas) -> Any:
    """Return what Ray Serve runs.

    Args:
        document: Settings as plain values.
        model: Bundle or export.
        replicas: How many.
    """
    settings = Settings.from_dict(document)
    check(settings)
    batching = settings.batching
    deployment = serve.deployment(
        name="api",
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": 2 * batching.max_batch_size,
        },
        max_ongoing_requests=batching.max_queue + 16,  # so that 429 is the app's own answer
        ray_actor_options={"num_cpus": batching.workers},
        graceful_shutdown_timeout_s=settings.listen.drain_seconds,
        health_check_period_s=5,
    )
    return deployment(serve.ingress()(Replica)).bind(str(model), dict(document))


class Replica:
    """The app in a process of some node.

    Args:
        model: Bundle or export.
        document: Settings as plain values.
    """

    def __init__(self, model: str, document: dict[str, Any]) -> None:
        settings = Settings.from_dict(document)
        if not settings.batching.threads:
            settings = replace(settings, batching=replace(settings.batching, threads=1))
        if settings.storage.audit is not None:
            file = own_file(settings.storage.audit, serve.get_replica_context().replica_tag)
            settings = replace(settings, storage=replace(settings.storage, audit=file))
        log_to_stderr()
        self._app = create_app(Path(model), settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app, which Ray Serve then starts."""
        return self._app

    def check_health(self) -> None:
        """Have a replica replaced whose app has failed.

        Raises:
            MedQuaError: It has.
        """
        service: Service = self._app.state.service
        if service.failure is not None:
            raise MedQuaError(str(service.failure))


def own_file(audit: Path, replica: str) -> Path:
    """Return the audit log of a replica: each has its own chain, so each its own file.

    Args:
        audit: As the settings name it.
        replica: Its id; no other replica ever has it.
    """
    return audit.with_name(f"{audit.stem}-{replica}{audit.suffix}")

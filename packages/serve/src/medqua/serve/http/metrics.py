"""What Prometheus scrapes, and what the log says of a request. Neither holds anything of a file."""

import json
import logging
import sys
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from medqua.serve.audit import Repository
from medqua.serve.http.guard import Ended
from medqua.serve.jobs.outgoing import Outgoing
from medqua.serve.jobs.runner import JobRunner
from medqua.serve.jobs.store import JobStore
from medqua.serve.processes.reader import Answer, Observer, Reader

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

log = logging.getLogger("medqua.serve")


class Metrics:
    """The service's numbers, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "medqua_requests_total", "Requests.", ("route", "method", "status"),
            registry=self.registry,
        )  # fmt: skip
        self._latency = Histogram(
            "medqua_request_seconds", "Time to answer.", ("route",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._files = Counter(
            "medqua_files_total", "Files answered.", ("status",), registry=self.registry
        )
        self._decode = Histogram(
            "medqua_decode_seconds", "Decoding of one file, waiting included.", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._batch = Histogram(
            "medqua_batch_images", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )  # fmt: skip
        self._infer = Histogram(
            "medqua_batch_seconds", "Reading of one batch.", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._lost = Counter(
            "medqua_workers_lost_total", "Workers that ended or hung.", registry=self.registry
        )
        self._unaudited = Counter(
            "medqua_audit_failures_total", "Requests failed since the audit log cannot be written.",
            registry=self.registry,
        )  # fmt: skip

    def observer(self) -> Observer:
        """Return what the reader tells."""
        return Observer(self._on_batch, self._lost.inc, self._decode.observe, self._on_answer)

    def watch(self, reader: Reader) -> None:
        """Add gauges of a reader."""
        for name, help_, value in (
            ("medqua_images_admitted", "Not yet answered.", lambda: reader.batcher.admitted),
            ("medqua_images_queued", "Waiting for a worker.", lambda: reader.batcher.queued),
            ("medqua_workers_ready", "Workers with a warm model.", lambda: reader.workers.ready),
        ):
            Gauge(name, help_, registry=self.registry).set_function(value)

    def audit_failed(self) -> None:
        """Count a request that failed because it could not be written down."""
        self._unaudited.inc()

    def watch_jobs(self, store: JobStore, runner: JobRunner) -> None:
        """Add numbers of accepted jobs."""
        for name, help_, value in (
            ("medqua_job_files_waiting", "Files without an answer.", lambda: store.counts()[0]),
            ("medqua_reports_owed", "Reports to be written and sent.", lambda: store.counts()[1]),
            ("medqua_job_files_lost", "Files answered as lost since the start.",
             lambda: runner.lost),
        ):  # fmt: skip
            Gauge(name, help_, registry=self.registry).set_function(value)

    def watch_repository(self, repository: Repository) -> None:
        """Add a gauge of what the audit repository has not got."""
        Gauge(
            "medqua_audit_unsent_bytes", "Bytes of the audit log not sent.", registry=self.registry
        ).set_function(lambda: repository.waiting)

    def watch_outgoing(self, outgoing: Outgoing) -> None:
        """Add numbers of the outbox."""
        outbox, courier = outgoing.outbox, outgoing.courier
        for name, help_, value in (
            ("medqua_outbox_waiting", "Objects that wait to be sent.", outbox.count_waiting),
            ("medqua_outbox_dead", "Objects laid aside after the last attempt.", outbox.count_dead),
            ("medqua_outbox_sent", "Objects the archive has taken since the start.",
             lambda: courier.total.sent),
            ("medqua_outbox_failures", "Failed deliveries since the start.",
             lambda: courier.total.failed + courier.total.buried),
            ("medqua_outbox_conflicts", "Objects since the start of whose UID the archive holds "
             "another one.", lambda: courier.total.conflicts),
            ("medqua_reports_unwritten", "Reports that could not be written since the start.",
             lambda: outgoing.unwritten),
        ):  # fmt: skip
            Gauge(name, help_, registry=self.registry).set_function(value)

    def ended(self, ended: Ended) -> None:
        """Count a request, and log it as one JSON line."""
        self._requests.labels(ended.route, ended.method, ended.status).inc()
        self._latency.labels(ended.route).observe(ended.seconds)
        log.info(
            "request",
            extra={"told": {**vars(ended), "seconds": round(ended.seconds, 4)}},
        )

    def _on_batch(self, size: int, seconds: float) -> None:
        self._batch.observe(size)
        self._infer.observe(seconds)

    def _on_answer(self, answer: Answer) -> None:
        self._files.labels(answer.status).inc()


class JsonLines(logging.Formatter):
    """Log records as JSON lines: time, level, event and what is told of it.

    An exception is logged by its class and the places that it passed, never by its message, which
    may quote a file.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            entry["error"] = type(error).__name__
            places = []
            trace = error.__traceback__
            while trace is not None:
                code = trace.tb_frame.f_code
                places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
                trace = trace.tb_next
            entry["at"] = places
        return json.dumps(entry)


def log_to_stderr() -> None:
    """Have everything logged as JSON lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("pynetdicom", "dicomweb_client"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

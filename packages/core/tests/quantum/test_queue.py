"""The queue against a real CUDA-Q client that speaks HTTP to a double of a provider, and against a
real emulated target. The double counts what is submitted to it."""

import base64
import dataclasses
import fcntl
import http.server
import json
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medqua.core.errors import ConfigError, QuantumError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.runtime import report
from medqua.core.quantum.runtime.checkpoint import jobs_of
from medqua.core.quantum.runtime.errors import kind_of
from medqua.core.quantum.runtime.plan import Policy, Price, UnfinishedError
from medqua.core.quantum.runtime.queue import JobQueue, circuits_of
from medqua.core.quantum.runtime.reference import exact_values

SECRET = "a-key-that-must-stay-out-of-files"
ANSWER = {"0": 0.25, "1": 0.5, "8": 0.25}  # frequencies by number, qubit 0 the lowest bit
EXPECTED = [0.0, 1.0, 1.0, 0.5]
PATIENCE = {"deadline": 900.0, "submit_timeout": 900.0, "lock_patience": 900.0}
"""No busy machine is taken for one that does not answer."""
QUICK = Policy(batch=2, in_flight=2, first_wait=0.01, longest_wait=0.02, **PATIENCE)


class Double(http.server.ThreadingHTTPServer):
    """Speaks as much of IonQ's job protocol as CUDA-Q's client asks for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.handle_error = lambda *_: None  # clients are killed here
        self.taken = []  # one body for each job that was taken
        self.posts = 0
        self.statuses = []  # of the next submissions; 200 when empty
        self.acknowledged = math.inf  # so many submissions at once, others on `go`
        self.go = threading.Event()
        self.state = "completed"
        self.answer = ANSWER

    @property
    def target(self):
        return f"ionq:url=http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.posts += 1
        status = server.statuses.pop(0) if server.statuses else 200
        if self.headers["Authorization"] != f"apiKey {SECRET}":
            status = 401
        if status != 200:
            self.reply(status, {"error": "no"})
            return
        server.taken.append(body)
        number = len(server.taken) - 1
        if number >= server.acknowledged:
            server.go.wait()
        self.reply(200, {"id": str(number), "status": "ready"})

    def do_GET(self):
        time.sleep(0.02)
        if "/results" in self.path:
            self.reply(200, self.server.answer)
            return
        number = self.path.rpartition("id=")[2]
        job = {"status": self.server.state, "results_url": f"/v0.3/jobs/{number}/results"}
        if self.server.state == "failed":
            job["failure"] = {"error": "calibration lost"}
        self.reply(200, {"jobs": [{**job, "qubits": 4}]})


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setenv("IONQ_API_KEY", SECRET)
    server = Double()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.go.set()
    server.shutdown()
    server.server_close()
    thread.join()


def machine(double, folder, shots=1000, policy=QUICK, **options):
    return JobQueue(double.target, shots, folder, policy=policy, price=Price(0.0), **options)


PROGRAM = """
import sys
from medqua.core.quantum.runtime import report
from medqua.core.quantum.runtime.plan import Policy, Price
from medqua.core.quantum.runtime.queue import JobQueue
target, folder, tokens, shots = sys.argv[1:]
policy = Policy(batch=2, in_flight=2, first_wait=0.01, deadline=900, submit_timeout=900)
price = Price(0.0)
queue = JobQueue(target, int(shots), folder, policy=policy, price=price)
queue.run(report.batch(tokens=int(tokens)))
"""


@pytest.fixture
def program(tmp_path):
    """Start the queue in a process of its own; what is left of it is killed."""
    running = []

    def start(target, folder, tokens, shots=1000):
        command = [sys.executable, "-c", PROGRAM, target, str(folder), str(tokens), str(shots)]
        running.append(subprocess.Popen(command, start_new_session=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_run_submits_every_circuit_once_and_a_second_run_nothing(double, tmp_path):
    circuits = report.batch(tokens=5)
    queue = machine(double, tmp_path)
    assert queue.estimate(circuits).submissions == 5
    result = queue.run(circuits)
    np.testing.assert_allclose(result.expectations, [EXPECTED] * 5)
    assert result.paths == {double.target: 5}
    assert result.submissions == len(double.taken) == 5
    programs = {base64.b64decode(body["input"]["data"]) for body in double.taken}
    assert len(programs) == 5  # five different circuits, not one five times

    again = machine(double, tmp_path).run(circuits)
    assert (again.submissions, len(double.taken)) == (0, 5)
    assert all(value.resumed for value in again.values)
    np.testing.assert_array_equal(again.expectations, result.expectations)
    for path in tmp_path.iterdir():
        assert SECRET not in path.read_text()


def test_killed_run_fetches_what_it_had_submitted_and_submits_the_rest(
    double, tmp_path, program, eventually
):
    double.state = "running"
    process = program(double.target, tmp_path, 6)
    eventually(lambda: len(double.taken) == 4)  # two batches of two in flight, none answered
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.5)
    assert len(double.taken) == 4  # the bound held
    double.state = "completed"
    result = machine(double, tmp_path).run(report.batch(tokens=6))
    assert len(double.taken) == 6
    assert result.submissions == 2
    assert [value.resumed for value in result.values] == [True] * 4 + [False] * 2
    np.testing.assert_allclose(result.expectations, [EXPECTED] * 6)


def test_killed_while_a_submission_is_on_its_way_submits_nothing_twice(
    double, tmp_path, program, eventually
):
    double.acknowledged = 1
    process = program(double.target, tmp_path, 4)
    eventually(lambda: len(double.taken) == 2)  # the second not acknowledged yet
    process.kill()
    process.wait()
    assert len(list(tmp_path.glob("*.handle"))) == 1
    assert len(list(tmp_path.glob("*.intent"))) == 2
    double.acknowledged = math.inf
    double.go.set()
    result = machine(double, tmp_path).run(report.batch(tokens=4))
    assert len(double.taken) == 4
    assert result.submissions == 2
    assert sum(value.resumed for value in result.values) == 2


def test_killed_run_on_an_emulated_target_resumes_and_repeats_no_finished_job(
    tmp_path, program, eventually
):
    tokens, shots = 8, 2000
    process = program("ionq-emulated", tmp_path, tokens, shots)
    eventually(lambda: len(list(tmp_path.glob("*.counts"))) >= 3)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    queue = JobQueue("ionq-emulated", shots, tmp_path, policy=QUICK)
    circuits = report.batch(tokens=tokens)
    with (tmp_path / ".lock").open() as lock:  # free when what was in hand is kept
        fcntl.flock(lock, fcntl.LOCK_EX)
    done = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir() if not p.name.startswith(".")}
    kept = len([p for p in done if p.suffix == ".handle"])
    assert 3 <= kept < tokens
    result = queue.run(circuits)
    assert result.submissions == tokens - kept
    assert all(p.stat().st_mtime_ns == changed for p, changed in done.items())
    exact = np.array([exact_values(circuit) for circuit in circuits])
    errors = np.sqrt((1 - exact**2 + 1 / shots) / shots)
    assert (np.abs(result.expectations - exact) < 5 * errors).all()


def test_errors_that_may_pass_are_tried_again(double, tmp_path):
    double.statuses = [503, 429]
    result = machine(double, tmp_path).run(report.batch(tokens=1))
    assert (double.posts, len(double.taken), result.submissions) == (3, 1, 1)


def test_refusal_is_told_at_once_and_nothing_is_lost(double, tmp_path, monkeypatch):
    monkeypatch.setenv("IONQ_API_KEY", "wrong")
    with pytest.raises(UnfinishedError, match=r"status code 401.*run again to resume") as caught:
        machine(double, tmp_path).run(report.batch(tokens=1))
    assert double.posts == 1
    assert caught.value.result.paths == {"no answer": 1}
    monkeypatch.setenv("IONQ_API_KEY", SECRET)
    assert machine(double, tmp_path).run(report.batch(tokens=1)).submissions == 1


def test_outage_leaves_an_exact_simulation_that_says_so(double, tmp_path):
    double.statuses = [200] + [500] * 50
    policy = dataclasses.replace(QUICK, batch=1, in_flight=1, retries=1)
    circuits = report.batch(tokens=2)
    result = machine(double, tmp_path, policy=policy, fallback="exact").run(circuits)
    measured, simulated = result.values
    assert (measured.path, measured.reason) == (double.target, "")
    assert simulated.path == "exact simulation"
    assert "status code 500" in simulated.reason
    np.testing.assert_allclose(simulated.expectation, exact_values(circuits[1]))
    assert simulated.shots == 0
    double.statuses = []  # a fallback is no answer: the machine is asked again
    assert machine(double, tmp_path).run(circuits).paths == {double.target: 2}


def test_machine_that_never_answers_meets_the_deadline_and_is_resumed(double, tmp_path):
    double.state = "running"
    for deadline in (4.0, 40.0, 400.0):  # later ones where it was too busy to submit
        folder = tmp_path / str(deadline)
        double.taken.clear()
        policy = dataclasses.replace(QUICK, deadline=deadline)
        with pytest.raises(UnfinishedError, match="deadline passed while it was") as caught:
            machine(double, folder, policy=policy).run(report.batch(tokens=1))
        if caught.value.result.submissions:
            break
    double.state = "completed"
    resumed = machine(double, folder).run(report.batch(tokens=1))
    assert (caught.value.result.submissions, resumed.submissions) == (1, 0)
    assert len(double.taken) == 1


def test_too_few_shots_are_refused_or_taken_as_what_they_are(double, tmp_path):
    double.answer = {"0": 0.3, "1": 0.3}
    with pytest.raises(UnfinishedError, match=r"answered 600 of 1000 shots: least=0\.6"):
        machine(double, tmp_path).run(report.batch(tokens=1))
    result = machine(double, tmp_path, least=0.5).run(report.batch(tokens=1))
    assert (len(double.taken), result.values[0].shots) == (1, 600)


def test_job_that_failed_at_the_provider_is_submitted_anew_a_bounded_number_of_times(
    double, tmp_path
):
    double.state = "failed"
    policy = dataclasses.replace(QUICK, retries=2)
    with pytest.raises(UnfinishedError, match="calibration lost"):
        machine(double, tmp_path, policy=policy).run(report.batch(tokens=1))
    assert len(double.taken) == 3


def test_submission_without_acknowledgement_is_in_doubt_and_not_repeated_unasked(double, tmp_path):
    double.acknowledged = 0
    for seconds in (1.0, 30.0, 300.0):  # later ones where it was too busy to submit
        folder = tmp_path / str(seconds)
        policy = dataclasses.replace(QUICK, submit_timeout=seconds)
        with pytest.raises(UnfinishedError, match="did not acknowledge"):
            machine(double, folder, policy=policy).run(report.batch(tokens=1))
        if double.taken:
            break
    double.acknowledged = math.inf
    with pytest.raises(QuantumError, match="may or may not have reached"):
        machine(double, folder).run(report.batch(tokens=1))
    assert len(double.taken) == 1
    machine(double, folder, resubmit_in_doubt=True).run(report.batch(tokens=1))
    assert len(double.taken) == 2


def test_cancelled_run_keeps_what_it_submitted(double, tmp_path, eventually):
    double.state = "running"
    queue = machine(double, tmp_path)

    def cancel():
        eventually(lambda: len(double.taken) == 4)
        queue.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(UnfinishedError, match="cancelled"):
        queue.run(report.batch(tokens=8))
    thread.join()
    assert len(double.taken) == 4
    assert len(list(tmp_path.glob("*.handle"))) == 4


def test_estimate_is_asked_before_anything_is_sent(double, tmp_path):
    circuits = report.batch(tokens=3)
    price = Price(shot=0.01, job=0.3, budget=30.0)
    queue = JobQueue(double.target, 1000, tmp_path, price=price)
    estimate = queue.estimate(circuits)
    assert estimate.cost == pytest.approx(3 * (0.3 + 10))
    assert "3 to submit with 3000 shots in all; cost 30.90" in str(estimate)
    with pytest.raises(QuantumError, match=r"more than the budget of 30.00: nothing was sent"):
        queue.run(circuits)
    assert double.posts == 0
    with pytest.raises(ConfigError, match="give price=Price"):
        JobQueue(double.target, 1000, tmp_path)


def test_folder_is_held_by_one_run_at_a_time(tmp_path, program, eventually):
    program("ionq-emulated", tmp_path, 200)
    eventually(lambda: list(tmp_path.glob("*.counts")))
    queue = JobQueue("ionq-emulated", 1000, tmp_path, policy=Policy(lock_patience=0.2))
    with pytest.raises(QuantumError, match="another run is using the checkpoint folder"):
        queue.run(report.batch(tokens=1))


def test_damaged_answer_is_named(tmp_path):
    queue = JobQueue("qpp-cpu", 10, tmp_path)
    (job,) = jobs_of(report.batch(tokens=1), "qpp-cpu", 10, 0)
    (tmp_path / f"{job.key}.counts").write_text("{")
    with pytest.raises(QuantumError, match=r"counts is damaged: remove it"):
        queue.run(report.batch(tokens=1))


def test_missing_credential_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("IONQ_API_KEY", raising=False)
    with pytest.raises(QuantumError, match="IONQ_API_KEY is not set"):
        JobQueue("ionq", 10, tmp_path, price=Price(0.0))


@pytest.mark.parametrize(
    "options", [{"shots": 0}, {"fallback": "maybe"}, {"least": 0.0}, {"least": 1.5}]
)
def test_queue_options_out_of_range_are_refused(options, tmp_path):
    with pytest.raises(ConfigError):
        JobQueue("qpp-cpu", **{"shots": 10, "folder": tmp_path, **options})


@pytest.mark.parametrize("options", [{"batch": 0}, {"in_flight": 0}, {"deadline": -1.0}])
def test_policy_out_of_range_is_refused(options):
    with pytest.raises(ConfigError):
        Policy(**options)


def test_jobs_are_named_by_everything_that_they_ask():
    (circuit,) = report.batch(tokens=1)
    other = dataclasses.replace(circuit, depth=1)
    folded = dataclasses.replace(circuit, each=1)
    keys = {
        jobs_of([which], target, shots, seed)[0].key
        for which in (circuit, other, folded)
        for target in ("qpp-cpu", "ionq-emulated")
        for shots in (10, 20)
        for seed in (0, 1)
    }
    assert len(keys) == 24
    first, second = jobs_of([circuit, circuit], "qpp-cpu", 10, 0)
    assert first.key != second.key  # equal circuits are measured each by itself
    assert first.own_seed != second.own_seed
    assert jobs_of([circuit], "qpp-cpu", 10, 0)[0].key == first.key


@pytest.mark.parametrize(
    ("message", "submitting", "kind"),
    [
        ("HTTP POST Error - status code 0: Failed to connect to 127.0.0.1:9", True, "retry"),
        ("HTTP POST Error - status code 0: Recv failure: Connection reset", True, "doubt"),
        ("HTTP POST Error - status code 504: gateway", True, "doubt"),
        ("HTTP POST Error - status code 503: down", True, "retry"),
        ("HTTP POST Error - status code 400: bad circuit", True, "refused"),
        ("cannot compile", True, "refused"),
        ("HTTP GET Error - status code 500: down", False, "retry"),
        ("HTTP GET Error - status code 401: who?", False, "refused"),
        ("The job failed upon submission.", False, "failed"),
    ],
)
def test_what_may_be_done_about_an_error(message, submitting, kind):
    assert kind_of(message, submitting) == kind


def test_circuits_of_tokens_bind_their_angles_and_depths():
    ansatz = Ansatz(2, 2)
    theta = torch.arange(12.0).view(2, 2, 3)
    angles = torch.tensor([[0.5, 1.0], [1.5, 2.0]])
    one, two = circuits_of(ansatz, theta, angles, torch.tensor([1, 2]))
    assert one.phi == (0.5, 1.0)
    assert one.theta[7] == 7.0
    assert (one.depth, two.depth) == (1, 2)
    with pytest.raises(ShapeError, match=r"needed \[tokens, 2\]"):
        circuits_of(ansatz, theta, angles, torch.tensor([1]))
    with pytest.raises(ConfigError, match="NaN"):
        circuits_of(ansatz, theta, angles * float("nan"), 1)


def test_no_circuits_are_no_work(tmp_path):
    result = JobQueue("qpp-cpu", 10, tmp_path).run([])
    assert result.expectations.shape == (0, 0)
    assert not [path for path in tmp_path.iterdir() if path != Path(tmp_path, ".lock")]

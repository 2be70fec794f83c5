"""Who does the jobs: options, what a node refuses and tells, and what becomes of a job that is lost."""

from __future__ import annotations

import fcntl
import queue
import sys
from types import SimpleNamespace

import pytest
from command_help import DECODE, ENVIRONMENT, TINY, TRANSFORMER, desk_with_a_run, refused

from harness.environment import machine_card, source_hash
from harness.executors import executor, local, node
from harness.plan import Cell, Job, Settings
from harness.store import read_table
from harness.supervise import EnvironmentRefuses, Supervisor

RUN = ("run", *TRANSFORMER, *DECODE, *TINY)


# --- options --------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path, monkeypatch):
    return desk_with_a_run(tmp_path, monkeypatch)


def test_without_ray_installed_one_sentence_names_the_extra(desk, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'kvmark[ray]'" in refused(desk, *RUN, "--executor", "ray", code=ENVIRONMENT)


def test_wrong_options_are_refused(desk):
    assert "known: local, ray" in refused(desk, *RUN, "--executor", "slurm")
    assert "--executor ray" in refused(desk, *RUN, "--workers", "2")
    assert "--device cuda, not cuda:1" in refused(desk, *RUN, "--executor", "ray", "--device", "cuda:1")


def test_local_is_the_default():
    assert executor() is local


# --- a Ray that says what the test wants ----------------------------------------------------------


class FakeRay:
    """`told` holds what each job's generator yields, in the order of submission; exceptions are raised."""

    class exceptions(SimpleNamespace):
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause):
                super().__init__(cause)
                self.cause = cause

    def __init__(self, *told, resources=({"CPU": 2.0},)):
        self.told, self.asked, self.options, self.down = list(told), [], None, False
        self.resources = resources

    def init(self, **options):
        if isinstance(self.resources, Exception):
            raise self.resources
        self.started = options

    def nodes(self):
        return [{"Alive": True, "Resources": has} for has in self.resources]

    def remote(self, **options):
        self.options = options
        return lambda function: SimpleNamespace(remote=self._submit)

    def _submit(self, content):
        self.asked.append(content)
        return iter(self.told[len(self.asked) - 1])

    def wait(self, generators, num_returns):
        return generators[:1], generators[1:]

    def get(self, message):
        if isinstance(message, Exception):
            raise message
        return message

    def shutdown(self):
        self.down = True


CELLS = {key: Cell(key, "transformer", "decode", {"context": 1}) for key in "ab"}
JOB = Job("job", tuple((cell,) for cell in CELLS.values()))
LOST = FakeRay.exceptions.RayError("The node died.")
CARD = {"id": "node"}


def finished(key: str, status: str = "ok") -> dict:
    return {"kind": "cell", "cell": key, "status": status, "message": None, "data": key.encode()}


def fan_out(tmp_path, monkeypatch, *told, settings=None, workers=None, **ray) -> tuple[FakeRay, Supervisor]:
    fake, settings = FakeRay(*told, **ray), settings or Settings("tiny")
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "x")
    (tmp_path / "run.json").write_text("{}")
    common = {"run": "r", "machine": "head", "sources": {}, "weights": {}}
    supervisor = Supervisor(tmp_path, settings, common)
    try:
        executor("ray", workers, settings.device)([JOB], supervisor, {"id": "head"})
    finally:
        assert fake.down or not hasattr(fake, "started")
    return fake, supervisor


def test_a_lost_job_is_retried_once_without_its_finished_cells(tmp_path, monkeypatch):
    ray, supervisor = fan_out(tmp_path, monkeypatch, [finished("a"), LOST], [finished("b")])
    assert [[cell["key"] for (cell,) in content["groups"]] for content in ray.asked] == [["a", "b"], ["b"]]
    assert supervisor.statuses == {"a": "ok", "b": "ok"}
    assert (tmp_path / "cells" / "a.parquet").read_bytes() == b"a"


def test_a_job_that_is_lost_twice_becomes_rows_of_the_machine_that_lost_it(tmp_path, monkeypatch):
    told = {"kind": "machine", "card": CARD}
    _, supervisor = fan_out(tmp_path, monkeypatch, [LOST], [told, finished("a"), LOST])
    assert supervisor.statuses == {"a": "ok", "b": "crash"}
    (row,) = read_table(tmp_path / "cells" / "b.parquet").to_pylist()
    assert row["machine"] == "node" and "lost twice" in row["message"] and "node died" in row["message"]


def test_a_job_that_is_lost_after_its_last_cell_is_done(tmp_path, monkeypatch):
    ray, supervisor = fan_out(tmp_path, monkeypatch, [finished("a"), finished("b", "oom"), LOST])
    assert len(ray.asked) == 1 and supervisor.statuses == {"a": "ok", "b": "oom"}


def test_what_a_node_refuses_and_what_breaks_in_it_end_the_run(tmp_path, monkeypatch):
    refusal = {"kind": "refused", "sentence": "No GPU here."}
    with pytest.raises(EnvironmentRefuses, match="No GPU here"):
        fan_out(tmp_path, monkeypatch, [refusal])
    broken = FakeRay.exceptions.RayTaskError(ModuleNotFoundError("No module named 'harness'"))
    with pytest.raises(EnvironmentRefuses, match=r"cannot run a job of kvmark \(No module named 'harness'\)"):
        fan_out(tmp_path, monkeypatch, [broken])


def test_a_ray_that_does_not_start_is_told(tmp_path, monkeypatch):
    late = Exception("The current node timed out during startup. This could happen because ...")
    with pytest.raises(EnvironmentRefuses, match=r"Ray does not start \(The current node timed out"):
        fan_out(tmp_path, monkeypatch, resources=late)


def test_a_cluster_that_is_gone_is_told(tmp_path, monkeypatch):
    def gone(self, generators, num_returns):
        raise self.exceptions.RayError("The head node died.")

    monkeypatch.setattr(FakeRay, "wait", gone)
    with pytest.raises(EnvironmentRefuses, match="Ray does not go on .*head node died"):
        fan_out(tmp_path, monkeypatch, [])


def test_each_cuda_job_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    settings, has = Settings("tiny", device="cuda", threads=3), ({"CPU": 4.0}, {"CPU": 3.0, "GPU": 1.0})
    done = [finished("a"), finished("b")]
    ray, _ = fan_out(tmp_path, monkeypatch, done, settings=settings, workers=2, resources=has)
    assert (ray.options["num_gpus"], ray.options["num_cpus"]) == (1, 3)
    assert ray.started["num_cpus"] == 6 and ray.started["address"] == "local"
    with pytest.raises(EnvironmentRefuses, match=r"No Ray node has .*CPU 3, GPU 1"):
        fan_out(tmp_path, monkeypatch, settings=settings, resources=({"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}))


def test_batches_of_a_long_cell_come_back_and_are_sent_again(tmp_path, monkeypatch):
    """A lost job goes on after the last batch that was told; a finished cell needs none of them."""
    part = {"kind": "journal", "cell": "a", "data": b"one\n"}
    ray, _ = fan_out(tmp_path, monkeypatch, [part, LOST], [part | {"data": b"two\n"}, finished("b"), LOST])
    assert [content["journals"] for content in ray.asked] == [{}, {"a": b"one\n"}]
    assert (tmp_path / "unfinished" / "a.jsonl").read_bytes() == b"one\ntwo\n"
    (tmp_path / "cells" / "a.parquet").unlink()
    fan_out(tmp_path, monkeypatch, [finished("a"), finished("b")])
    assert not (tmp_path / "unfinished" / "a.jsonl").exists()


# --- the node -------------------------------------------------------------------------------------


@pytest.fixture
def content(tmp_path) -> dict:
    """A job without cells that any node of this checkout would take."""
    names = ("text_label", "checkpoint", "text")
    return {
        **dict.fromkeys(names), "run": "r", "settings": vars(Settings("tiny")), "sources": {}, "weights": {},
        "architectures": {}, "job": "job", "groups": [], "journals": {}, "folder": str(tmp_path),
        "environment": {}, "ceilings": False, "driver": machine_card(commit="c0ffee"),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _same_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a node changes it


def test_a_node_tells_first_what_it_is(content):
    (told,) = node.measure(content)
    assert told["kind"] == "machine" and told["card"]["source_hash"] == source_hash()
    assert (told["card"]["commit"], told["card"]["id"]) == ("c0ffee", content["driver"]["id"])


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ({"source_hash": "0" * 64}, "other sources"),
        ({"packages": {"torch": "0.1"}}, "this machine 0.1: install the same packages"),
        ({"packages": {"no-such-package": "1.0"}}, "no-such-package none and this machine 1.0"),
    ],
)
def test_a_node_with_other_inputs_refuses(content, driver, words):
    (told,) = node.measure(content | {"driver": content["driver"] | driver})
    assert told["kind"] == "refused" and words in told["sentence"]


def test_a_node_with_other_weights_refuses(content):
    seeded = {"transformer": "random@seed=1"}
    (told,) = node.measure(content | {"weights": seeded})
    assert told["kind"] == "refused" and "other weights of transformer (random@seed=0" in told["sentence"]


def test_what_leaves_a_node(tmp_path):
    told, base = queue.SimpleQueue(), {"cell": "a", "architecture": "x"}
    for name in ("cells", "unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / "cells" / "a.parquet").write_bytes(b"rows")
    journal = tmp_path / "unfinished" / "a.jsonl"
    journal.write_bytes(b"sent before|")
    hear = node._Hear(tmp_path, told, {"a": journal.stat().st_size})
    start, batch = base | {"event": "start"}, base | {"event": "phase", "phase": "allocate"}
    hear(start)
    hear(batch)
    journal.write_bytes(b"sent before|new")
    for event in (batch, batch, start, base | {"event": "done"}):
        hear(event)
    hear({"event": "settled", "cell": "a", "status": "ok", "message": None})
    found = [told.get() for _ in range(told.qsize())]
    assert [message["kind"] for message in found] == ["event", "journal", "cell"]
    assert (found[1]["data"], found[2]["data"]) == (b"new", b"rows")


def test_scratch_folders_of_killed_processes_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, taken = tmp_path / "kvmark-ray-left", tmp_path / "kvmark-ray-taken"
    for folder in (left, taken):
        folder.mkdir()
        (folder / ".lock").touch()
    with (taken / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with node.scratch() as mine:
            assert {path.name for path in tmp_path.iterdir()} == {taken.name, mine.name}
    assert [path.name for path in tmp_path.iterdir()] == [taken.name]

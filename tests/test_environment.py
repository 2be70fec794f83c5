"""The machine card and the hash of the sources: what must change them, and what must not be in them."""

import getpass
import json
import re
import socket
import subprocess
import sys

import pytest
from fake_nvml import FakeNvml

from harness import environment, machine_limits, nvml


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def sources(tmp_path):
    """A small copy of the layout, to be changed at will."""
    judging = ("harness/report/page.py", "harness/validity/energy.py", "harness/derived.py")
    for name in ("harness/store.py", *judging, "models/decoder.py", "suites/plan.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "README.md").write_text("words\n")
    return tmp_path


def fresh_hash(root):
    environment.source_hash.cache_clear()
    return environment.source_hash(root)


def test_the_card_is_json_with_known_facts_and_stable_between_calls():
    card = environment.machine_card(threads=2, commit="abc123")
    assert json.loads(json.dumps(card)) == card
    assert card["threads"] == 2
    assert card["cores"] >= len(card["affinity"]) >= 1
    assert card["memory_bytes"] is None or card["memory_bytes"] > 1 << 28
    assert re.fullmatch(r"[0-9a-f]{12}", card["id"])
    assert (card["commit"], card["dirty"], card["commit_source"]) == ("abc123", None, "given")
    assert card["packages"]["pyarrow"]
    assert (card["gpu"] is None) == (card["gpu_note"] is not None)
    assert environment.machine_card(device="cpu", threads=1)["id"] == card["id"]


def strings(value):
    if isinstance(value, dict):
        return [s for pair in value.items() for item in pair for s in strings(item)]
    if isinstance(value, list):
        return [s for item in value for s in strings(item)]
    return [value] if isinstance(value, str) else []


def test_the_card_names_neither_host_nor_user_nor_path():
    words = {word for text in strings(environment.machine_card()) for word in re.split(r"[\s,()]+", text)}
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words
    assert str(environment.ROOT) not in " ".join(words)
    assert not any(word.startswith("/") for word in words)


def test_a_gpu_card_is_in_si_units_without_its_uuid():
    card = nvml.open_gpu("cuda:1", nvml=FakeNvml()).card()
    assert card == {
        "name": "NVIDIA H100",
        "memory_bytes": 80 << 30,
        "driver": "580.65.06",
        "cuda_driver": "13.0",
        "sm_clock_max_hz": pytest.approx(1.98e9),
        "memory_clock_max_hz": pytest.approx(2.619e9),
        "power_limit_w": pytest.approx(700.0),
        "count": 3,
    }
    refused = FakeNvml(refuse=["nvmlSystemGetCudaDriverVersion", "nvmlDeviceGetEnforcedPowerLimit"])
    card = nvml.open_gpu("cuda", nvml=refused).card()
    assert card["cuda_driver"] is None
    assert card["power_limit_w"] is None


@pytest.mark.parametrize("name", ["harness/store.py", "models/decoder.py", "suites/plan.toml"])
def test_source_hash_changes_with_every_source(sources, name):
    before = fresh_hash(sources)
    assert fresh_hash(sources) == before
    (sources / name).write_text("changed\n")
    assert fresh_hash(sources) != before


def test_source_hash_sees_new_renamed_and_moved_code(sources):
    hashes = {fresh_hash(sources)}
    (sources / "models" / "toy.py").write_text("")
    hashes.add(fresh_hash(sources))
    (sources / "models" / "toy.py").rename(sources / "models" / "toy2.py")
    hashes.add(fresh_hash(sources))
    (sources / "models" / "toy2.py").rename(sources / "suites" / "toy2.py")
    hashes.add(fresh_hash(sources))
    assert len(hashes) == 4


def test_source_hash_ignores_what_cannot_change_a_number(sources):
    before = fresh_hash(sources)
    (sources / "harness/report/page.py").write_text("prettier\n")
    (sources / "harness/validity/energy.py").write_text("another limit\n")
    (sources / "harness/derived.py").write_text("one row more\n")
    (sources / "README.md").write_text("other words\n")
    (sources / "models" / "notes.txt").write_text("x")
    assert fresh_hash(sources) == before


def test_source_hash_is_read_once_per_process(sources):
    before = fresh_hash(sources)
    (sources / "models/decoder.py").write_text("changed while running\n")
    assert environment.source_hash(sources) == before


def test_commit_and_dirty_flag_follow_the_sources(sources):
    assert environment.checkout(sources)["commit"] is None
    git(sources, "init", "-q")
    assert environment.checkout(sources)["commit"] is None  # no commit yet
    git(sources, "add", ".")
    git(sources, "commit", "-q", "-m", "first")
    clean = environment.checkout(sources)
    assert re.fullmatch(r"[0-9a-f]{40}", clean["commit"])
    assert (clean["dirty"], clean["commit_source"]) == (False, "git")
    (sources / "README.md").write_text("not a source\n")
    assert environment.checkout(sources)["dirty"] is False
    (sources / "models" / "toy.py").write_text("")  # untracked code runs like any other
    assert environment.checkout(sources)["dirty"] is True
    # A copy inside somebody else's repository must not take that one's commit for its own.
    assert environment.checkout(sources / "models")["commit"] is None


def test_unreadable_facts_are_none(tmp_path):
    assert environment.cpu_model(tmp_path / "none") is None
    assert environment.memory_bytes(tmp_path / "none") is None
    assert environment.package_version("no-such-package-at-all") is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz: x\n")
    assert environment.cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2.0GHz: x"


def test_container_limits_of_both_cgroup_versions(tmp_path):
    assert machine_limits.cgroup_cores(tmp_path) is None
    assert machine_limits.cgroup_memory_bytes(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_limits.cgroup_cores(tmp_path) == 1.5
    assert machine_limits.cgroup_memory_bytes(tmp_path) is None
    old = tmp_path / "v1"
    for name, text in {
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "1073741824\n",
    }.items():
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(text)
    assert machine_limits.cgroup_cores(old) is None
    assert machine_limits.cgroup_memory_bytes(old) == 1 << 30


def test_a_memory_limit_makes_the_allocation_fail_and_not_the_machine():
    code = (
        "from harness.machine_limits import limit_memory\n"
        "limit_memory(200 << 20)\n"
        "bytearray(50 << 20)\n"
        "try: bytearray(400 << 20)\n"
        "except MemoryError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=environment.ROOT, check=True
    )
    assert done.stdout == "refused\n"

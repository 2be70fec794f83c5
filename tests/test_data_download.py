"""One file over HTTP from a server that misbehaves: whole and right in the end, or one sentence."""

from __future__ import annotations

import email.utils
import hashlib
import os
import re
import socket
import subprocess
import sys
import time

import pytest
from harness_help import ROOT

from suites.data.catalogue import Remote
from suites.data.download import Patience, download, size_of
from suites.data.faults import Unavailable

pytest_plugins = ("data_server",)

RAW = os.urandom(200_000)
QUICK = Patience(delay_s=0.001, connect_s=2, read_s=2)


@pytest.fixture
def file(server):
    server.files["/f.zip"] = RAW
    return Remote(f"{server.url}/f.zip", hashlib.sha256(RAW).hexdigest(), len(RAW))


def bare(file: Remote) -> Remote:
    """The same without a published checksum or size."""
    return Remote(file.url)


def refused(remote: Remote, folder, patience: Patience = QUICK) -> str:
    with pytest.raises(Unavailable) as caught:
        download(remote, folder / "f.zip", patience=patience)
    assert not (folder / "f.zip").exists()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(file, tmp_path):
    heard = []
    download(file, tmp_path / "deep" / "f.zip", lambda done, total: heard.append((done, total)), QUICK)
    assert (tmp_path / "deep" / "f.zip").read_bytes() == RAW
    assert os.listdir(tmp_path / "deep") == ["f.zip"]
    assert heard[-1] == (len(RAW), len(RAW)) and heard == sorted(heard)
    assert size_of(file) == len(RAW)


def test_a_busy_server_is_asked_again_and_not_before_it_wants(server, file, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    server.faults["/f.zip"] = ["503:7", "429", "500"]
    download(file, tmp_path / "f.zip", patience=Patience())
    assert (tmp_path / "f.zip").read_bytes() == RAW
    assert len(server.asked("/f.zip")) == 4 and slept == [7.0, 1.0, 2.0]


def test_a_date_to_ask_again_is_kept(server, file, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    dates = [email.utils.formatdate(time.time() + after, usegmt=True) for after in (100, -100)]
    server.faults["/f.zip"] = [f"503:{date}" for date in (*dates, "soon")]
    download(file, tmp_path / "f.zip", patience=Patience())
    assert 90 < slept[0] <= 100 and slept[1:] == [1.0, 2.0], "a date that has passed asks for nothing"


@pytest.mark.parametrize("kind", ["number", "date"])
def test_who_wants_to_be_asked_much_later_is_not_waited_for(server, file, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    later = email.utils.formatdate(time.time() + 7200, usegmt=True)
    server.faults["/f.zip"] = [f"503:{'7200' if kind == 'number' else later}"]
    sentence = refused(file, tmp_path, Patience())
    assert re.search(r"says 503 .* and asks to wait 7,(200|1[0-9]{2}) s, more than the 600 s", sentence)
    assert len(server.asked("/f.zip")) == 1


@pytest.mark.parametrize(("status", "times"), [("503", 4), ("404", 1), ("403", 1)])
def test_what_does_not_pass_is_one_sentence(server, file, tmp_path, status, times):
    server.always["/f.zip"] = status
    assert f"the server says {status}" in refused(file, tmp_path)
    assert len(server.asked("/f.zip")) == times
    assert not list(tmp_path.iterdir())


def test_redirects_are_followed_also_for_the_rest_of_a_file(server, file, tmp_path):
    server.always["/old"] = "to:/f.zip"
    server.faults["/f.zip"] = ["cut:70000"]
    download(Remote(f"{server.url}/old", file.sha256), tmp_path / "f.zip", patience=QUICK)
    assert (tmp_path / "f.zip").read_bytes() == RAW
    assert server.asked("/f.zip")[1].startswith("bytes=")
    server.always["/loop"] = "to:/loop"
    assert "redirects without end" in refused(Remote(f"{server.url}/loop"), tmp_path / "other")
    with pytest.raises(Unavailable, match="redirects without end"):
        size_of(Remote(f"{server.url}/loop"))


@pytest.mark.parametrize("address", ["file:///etc/passwd", "gopher://127.0.0.1/f.zip", "http://:80:80/f.zip"])
def test_a_redirect_to_no_address_of_the_web_is_not_followed_and_not_repeated(server, tmp_path, address):
    server.always["/old"] = f"to:{address}"
    remote = Remote(f"{server.url}/old")
    assert "/old leads to no valid address" in refused(remote, tmp_path)
    assert len(server.asked("/old")) == 1 and not list(tmp_path.iterdir())
    with pytest.raises(Unavailable, match="leads to no valid address"):
        size_of(remote)


def test_broken_connections_are_resumed_by_range(server, file, tmp_path):
    """Each break brings the file forward, so there may be more of them than tries."""
    server.faults["/f.zip"] = ["cut:30000"] * 5
    download(file, tmp_path / "f.zip", patience=QUICK)
    assert (tmp_path / "f.zip").read_bytes() == RAW
    first, *others = server.asked("/f.zip")
    starts = [int(range.removeprefix("bytes=").removesuffix("-")) for range in others]
    assert first is None and starts == sorted(starts) and starts[0] > 0 and len(starts) == 5


def test_a_later_process_goes_on_where_the_first_one_stopped(server, file, tmp_path):
    server.faults["/f.zip"] = ["cut:120000"]
    refused(bare(file), tmp_path, Patience(tries=1))
    have = (tmp_path / "f.zip.part").stat().st_size
    assert 0 < have <= 120_000
    download(file, tmp_path / "f.zip", patience=QUICK)
    assert server.asked("/f.zip")[-1] == f"bytes={have}-"
    assert (tmp_path / "f.zip").read_bytes() == RAW


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_file_that_changed_meanwhile_is_not_glued(server, file, tmp_path, deaf, pinned):
    """Also where the server has Range but has never heard of If-Range."""
    server.faults["/f.zip"] = ["cut:120000"]
    refused(bare(file), tmp_path, Patience(tries=1))
    server.files["/f.zip"] = changed = os.urandom(len(RAW))
    server.faults["/f.zip"] = ["deaf"] if deaf else []
    remote = Remote(file.url, hashlib.sha256(changed).hexdigest() if pinned else None)
    download(remote, tmp_path / "f.zip", patience=QUICK)
    assert (tmp_path / "f.zip").read_bytes() == changed


def test_a_rest_that_does_not_say_of_which_version_it_is_is_not_joined(server, file, tmp_path):
    """The file changed, and its server has neither If-Range nor an ETag in the answer."""
    server.faults["/f.zip"] = ["cut:120000"]
    refused(bare(file), tmp_path, Patience(tries=1))
    server.files["/f.zip"] = changed = os.urandom(len(RAW))
    server.faults["/f.zip"] = ["mute"]
    download(bare(file), tmp_path / "f.zip", patience=QUICK)
    assert (tmp_path / "f.zip").read_bytes() == changed and server.asked("/f.zip")[-1] is None


@pytest.mark.parametrize("again", [False, True])
def test_what_was_joined_and_is_wrong_comes_once_more_from_the_start(
    server, file, tmp_path, monkeypatch, again
):
    """The file changes under its ETag between two tries; the checksum notices, and all comes once more."""
    server.tag, server.files["/f.zip"] = '"one"', os.urandom(len(RAW))
    server.faults["/f.zip"] = ["cut:120000"]

    def changes(seconds):
        server.files["/f.zip"] = os.urandom(len(RAW)) if again else RAW

    monkeypatch.setattr(time, "sleep", changes)
    if again:
        assert "differs from its checksum" in refused(file, tmp_path)
    else:
        download(file, tmp_path / "f.zip", patience=QUICK)
        assert (tmp_path / "f.zip").read_bytes() == RAW
    assert [range is None for range in server.asked("/f.zip")] == [True, False, True]


@pytest.mark.parametrize("without", ["tagged", "ranged"])
def test_without_a_tag_or_ranges_a_break_means_anew(server, file, tmp_path, without):
    setattr(server, without, False)
    server.faults["/f.zip"] = ["cut:120000", "cut:50000"]
    download(file, tmp_path / "f.zip", patience=QUICK)
    assert (tmp_path / "f.zip").read_bytes() == RAW
    assert without == "ranged" or server.asked("/f.zip") == [None, None, None]


def test_a_part_of_something_else_does_not_spoil_the_file(server, file, tmp_path):
    """Somebody wrote into the part: the checksum notices, and all of it comes anew."""
    server.faults["/f.zip"] = ["cut:120000"]
    refused(file, tmp_path, Patience(tries=1))
    part = tmp_path / "f.zip.part"
    part.write_bytes(bytes(part.stat().st_size))
    download(file, tmp_path / "f.zip", patience=QUICK)
    assert (tmp_path / "f.zip").read_bytes() == RAW and server.asked("/f.zip")[-1] is None


def test_a_part_that_is_whole_is_not_fetched_again(server, file, tmp_path):
    server.faults["/f.zip"] = ["cut:120000"]
    refused(bare(file), tmp_path, Patience(tries=1))
    (tmp_path / "f.zip.part").write_bytes(RAW)  # killed after the last byte, before it had its name
    download(bare(file), tmp_path / "f.zip", patience=QUICK)
    assert (tmp_path / "f.zip").read_bytes() == RAW
    assert server.asked("/f.zip") == [None, f"bytes={len(RAW)}-"]


def test_a_body_that_is_always_short_is_refused(server, file, tmp_path):
    server.tagged, server.always["/f.zip"] = False, "short"
    assert "could not be fetched" in refused(bare(file), tmp_path)
    assert len(server.asked("/f.zip")) == QUICK.tries
    server.always["/f.zip"] = "unsized:150000"
    assert "only 150,000 bytes came" in refused(file, tmp_path)


def test_wrong_sizes_and_checksums_leave_nothing(server, file, tmp_path):
    wrong = Remote(file.url, "0" * 64, len(RAW))
    assert "differs from its checksum" in refused(wrong, tmp_path)
    assert server.asked("/f.zip") == [None], "what came in one piece would come so again"
    smaller = Remote(file.url, file.sha256, len(RAW) - 1)
    assert f"has {len(RAW):,} bytes; {len(RAW) - 1:,} are published" in refused(smaller, tmp_path)
    server.always["/f.zip"] = "long"
    assert f"sends more than {len(RAW):,} bytes" in refused(file, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_network_there_is_one_sentence(file, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/f.zip"
    assert re.fullmatch(r"127\.0\.0\.1:\d+ cannot be reached \(.*refused\)\.", refused(Remote(url), tmp_path))
    with pytest.raises(Unavailable, match="cannot be reached"):
        size_of(Remote(url))


def test_a_silent_server_is_given_up(server, file, tmp_path):
    server.always["/f.zip"] = "stall"
    patience = Patience(tries=2, delay_s=0.001, read_s=0.1)
    assert "cannot be reached" in refused(file, tmp_path, patience)


def test_a_deadline_holds_for_all_tries(server, file, tmp_path):
    server.always["/f.zip"] = "503:30"
    patience = Patience(deadline=time.monotonic() + 5)
    assert "the server says 503" in refused(file, tmp_path, patience)
    assert len(server.asked("/f.zip")) == 1


def test_a_full_disk_is_one_sentence(file, tmp_path):
    """The limit is the system's own: no file of this process may grow beyond 50,000 bytes."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from suites.data.catalogue import Remote\n"
        "from suites.data.download import download\n"
        "from suites.data.faults import Unavailable\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))\n"
        "try:\n"
        "    download(Remote(sys.argv[1]), Path(sys.argv[2]))\n"
        "except Unavailable as error:\n"
        "    print(error)\n"
    )
    arguments = [sys.executable, "-c", code, file.url, str(tmp_path / "f.zip")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"The disk that holds {tmp_path}/f.zip.part is full.\n", done.stderr
    assert not (tmp_path / "f.zip").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(file, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(Unavailable, match="taken.* cannot be written"):
        download(file, tmp_path / "taken" / "f.zip", patience=QUICK)

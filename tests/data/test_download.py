"""Fetching: a real HTTP server on this machine that answers well, badly, or breaks off."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from data_cases import columns, write
from data_server import Site, certificate, serving
from run_cases import wait_for

from gtp_fast.cli.main import main
from gtp_fast.data import catalog, dataset, download
from gtp_fast.errors import DataError, DiskError

SPEC = catalog.resolve("halfcheetah-medium-v2")
PLACE = "/gym_mujoco_v2/halfcheetah_medium-v2.hdf5"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write(tmp_path / "made.hdf5", columns(episodes=20, length=500)).read_bytes()


@pytest.fixture
def site(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving(Site({PLACE: content})) as found:
        monkeypatch.setenv("GTP_FAST_D4RL_URL", found.url + "/")
        monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
        yield found


def part() -> Path:
    """Return where what has come of the file is kept."""
    return download.cache_path(SPEC).with_name(f"{SPEC.filename}.part")


def left_over() -> list[str]:
    """Return the names beside the file in the cache, without its lock."""
    return sorted(p.name for p in download.cache_path(SPEC).parent.iterdir() if p.suffix != ".lock")


def test_a_file_is_fetched_whole_with_progress_and_leaves_nothing_beside(site: Site, content: bytes):
    seen: list[tuple[int, int | None]] = []
    path = download.fetch(SPEC, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == content and left_over() == [SPEC.filename]
    assert seen[-1] == (len(content), len(content)) and seen == sorted(seen)


def test_what_was_fetched_trains(site: Site):
    data = dataset.load(SPEC)
    assert len(data.obs_ND) == 20 * 499 and data.source == str(download.cache_path(SPEC))


def test_a_file_in_the_cache_asks_nobody(site: Site, content: bytes):
    path = download.cache_path(SPEC)
    path.parent.mkdir()
    path.write_bytes(content)
    assert download.fetch(SPEC) == path and site.asked == []


def test_the_cache_is_in_the_home_directory_by_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    assert download.cache_path(SPEC) == Path.home() / ".d4rl" / "datasets" / "halfcheetah_medium-v2.hdf5"


def test_a_mirror_may_hold_the_files_flat(site: Site, content: bytes):
    site.files = {"/halfcheetah_medium-v2.hdf5": content}
    assert download.fetch(SPEC).read_bytes() == content


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "ranges ignored"])
def test_a_transfer_cut_off_twice_is_completed(site: Site, content: bytes, ranges: bool):
    site.ranges, site.cut_at = ranges, [len(content) // 2, len(content) // 4]
    assert download.fetch(SPEC).read_bytes() == content
    assert len(site.asked) == 3 and site.asked[1][1] == f"bytes={len(content) // 2}-"


def test_a_server_that_always_breaks_off_is_given_up_and_a_later_call_continues(site: Site, content: bytes):
    site.cut_at = [1000] * 10
    with pytest.raises(DataError, match=r"broke 10 times.*10,000 bytes are kept and will be continued"):
        download.fetch(SPEC)
    assert part().name in left_over() and SPEC.filename not in left_over()
    assert download.fetch(SPEC).read_bytes() == content and site.asked[-1][1] == "bytes=10000-"


def test_a_part_of_a_file_that_has_changed_is_not_continued(site: Site, content: bytes):
    site.cut_at = [1000] * 10
    with pytest.raises(DataError):
        download.fetch(SPEC)
    site.files[PLACE], site.version = content[::-1], '"2"'
    assert download.fetch(SPEC).read_bytes() == content[::-1]


@pytest.mark.parametrize(
    ("change", "address"),
    [(lambda whole: b"x" * 100, "http://other/file"), (lambda whole: whole, ""), (lambda whole: whole + b"more", "")],
    ids=["from another address", "the whole", "longer than the file"],
)
def test_a_part_of_another_process_ends_as_the_file(site: Site, content: bytes, change, address: str):
    part().parent.mkdir()
    part().write_bytes(change(content))
    about = {"url": address or site.url + PLACE, "version": site.version}
    part().with_name(part().name + ".json").write_text(json.dumps(about))
    assert download.fetch(SPEC).read_bytes() == content


def broken_off(site: Site) -> None:
    """Leave a part of 10,000 bytes in the cache."""
    site.cut_at = [1000] * 10
    with pytest.raises(DataError):
        download.fetch(SPEC)
    site.asked.clear()


def test_a_part_is_not_continued_by_an_answer_with_another_range(site: Site, content: bytes):
    broken_off(site)
    site.shift = 7
    assert download.fetch(SPEC).read_bytes() == content
    assert [wanted for _, wanted in site.asked] == ["bytes=10000-", None]


def test_a_part_is_not_continued_by_an_answer_of_another_size(site: Site, content: bytes):
    broken_off(site)
    site.grown = 7
    assert download.fetch(SPEC).read_bytes() == content
    assert [wanted for _, wanted in site.asked] == ["bytes=10000-", None]


def test_a_part_of_no_known_version_is_begun_again(site: Site, content: bytes):
    broken_off(site)
    record = part().with_name(part().name + ".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"version": None}))
    site.files[PLACE] = content[::-1]
    assert download.fetch(SPEC).read_bytes() == content[::-1]


def fetch_killed(opened: int) -> None:
    """Kill this process at the n-th time that it opens, renames or removes something beside the part."""
    folder, left = os.environ["D4RL_DATASET_DIR"], iter(range(opened))

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in ("open", "os.remove", "os.rename") and str(args[0]).startswith(folder) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    download.fetch(SPEC)


def test_a_kill_at_any_point_mixes_no_two_versions_of_a_file(site: Site, content: bytes):
    broken_off(site)
    (old, *_) = kept = [part(), part().with_name(part().name + ".json")]
    before, deaths = {path: path.read_bytes() for path in kept}, 0
    site.files[PLACE], site.version = content[::-1], '"2"'
    while True:
        for path, held in before.items():
            path.write_bytes(held)
        process = multiprocessing.get_context("fork").Process(target=fetch_killed, args=(deaths,))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        deaths += 1
        assert download.fetch(SPEC).read_bytes() == content[::-1], f"killed at point {deaths}"
        download.cache_path(SPEC).unlink()
    assert process.exitcode == 0 and deaths >= 8 and not old.exists()


def test_more_than_the_published_size_is_not_written(site: Site, content: bytes, monkeypatch: pytest.MonkeyPatch):
    spec = published(site, monkeypatch, size=len(content) + 10, sha256=None)
    site.more, written = b"x" * 65_536, []
    with pytest.raises(DataError, match=re.escape(f"gave more than the published {spec.size:,} bytes; nothing")):
        download.fetch(spec, lambda done, _: written.append(done))
    assert left_over() == [] and max(written) <= len(content) + 10


def test_a_size_that_is_not_the_published_one_is_refused_before_anything_is_written(
    site: Site, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    spec = published(site, monkeypatch, size=5, sha256=None)
    written: list[int] = []
    with pytest.raises(DataError, match=re.escape(f"gave {len(content):,} bytes, expected 5; nothing was kept")):
        download.fetch(spec, lambda done, _: written.append(done))
    assert written == [] and left_over() == []


def test_a_file_without_a_size_ends_before_the_disk_is_full(site: Site, content: bytes, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=download.SPARE + 3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    site.more, written = b"x" * 65_536, []
    with pytest.raises(DiskError, match=r"gives no size and has sent more than the 3,000,000 bytes that the disk of"):
        download.fetch(SPEC, lambda done, _: written.append(done))
    assert left_over() == [] and max(written) <= 3_000_000


def test_a_file_larger_than_the_disk_is_refused_before_anything_is_written(site: Site, content: bytes, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    written: list[int] = []
    with pytest.raises(DiskError, match=f"has {len(content):,} bytes, and the disk of .* can spare 0; free some"):
        download.fetch(SPEC, lambda done, _: written.append(done))
    assert written == []


@pytest.mark.parametrize("name", ["", ".part", ".part.json", ".lock"])
@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_what_is_no_file_of_its_own_in_the_cache_is_named_and_not_followed(
    site: Site, tmp_path: Path, name: str, kind: str
):
    broken_off(site)
    path = download.cache_path(SPEC)
    path = path.with_name(path.name + name)
    path.unlink(missing_ok=True)
    mine = tmp_path / "mine"
    mine.write_text("of value")
    path.symlink_to(mine) if kind == "a link" else os.mkfifo(path)
    with pytest.raises(DataError, match=re.escape(f"{path} is {kind}") + ".*expected a file of its own"):
        download.fetch(SPEC)
    assert mine.read_text() == "of value"


@pytest.fixture
def secure(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Serve by HTTPS, with a certificate that this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl, which makes the certificate")
    secret = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(secret))
    with serving(Site({PLACE: content}), secret) as found:
        yield found


def test_https_is_followed_to_https(site: Site, secure: Site, content: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GTP_FAST_D4RL_URL", secure.url)
    secure.redirects = {PLACE: "/moved"}
    secure.files = {"/moved": content}
    assert download.fetch(SPEC).read_bytes() == content


def test_a_redirect_that_leaves_https_is_refused_with_both_addresses(
    site: Site, secure: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GTP_FAST_D4RL_URL", secure.url)
    secure.redirects = {PLACE: "/first", "/first": f"{secure.url}/second", "/second": site.url + PLACE}
    with pytest.raises(DataError) as error:
        download.fetch(SPEC)
    assert f"({secure.url}/second leads on to {site.url}{PLACE}, which is not HTTPS; it was not followed)" in str(
        error.value
    )
    assert site.asked == [] and left_over() == []


def test_a_typed_http_mirror_may_lead_to_https_and_to_http(site: Site, secure: Site, content: bytes):
    site.redirects = {PLACE: f"{site.url}/here", "/here": secure.url + PLACE}
    assert download.fetch(SPEC).read_bytes() == content


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:9/file", "file:///etc/hostname", "data:text/plain,x"])
def test_a_redirect_to_another_protocol_is_refused_with_both_addresses(site: Site, address: str):
    site.redirects = {PLACE: address}
    with pytest.raises(DataError) as error:
        download.fetch(SPEC)
    assert site.url + PLACE in str(error.value) and address in str(error.value) and "not" in str(error.value)


def test_a_part_that_is_whole_is_asked_for_once_and_not_fetched_again(site: Site, content: bytes):
    part().parent.mkdir()
    part().write_bytes(content)
    part().with_name(part().name + ".json").write_text(json.dumps({"url": site.url + PLACE, "version": site.version}))
    assert download.fetch(SPEC).read_bytes() == content
    assert site.asked == [(PLACE, f"bytes={len(content)}-")]


def test_a_server_is_reached_without_any_content(site: Site):
    site.cut_at = [10]  # it would be taken by an answer with a content
    download.reach(site.url + PLACE)
    download.reach(site.url + "/missing")
    assert site.asked == [(PLACE, None), ("/missing", None)] and site.cut_at == [10]


@pytest.mark.parametrize(
    ("name", "mirror", "folder"),
    [
        ("halfcheetah-medium-v2", "GTP_FAST_D4RL_URL", "D4RL_DATASET_DIR"),
        ("cube-single-play-singletask-v0", "GTP_FAST_OGBENCH_URL", "OGBENCH_DATASET_DIR"),
    ],
    ids=["d4rl", "ogbench"],
)
def test_a_source_has_its_own_variables_for_mirror_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name, mirror, folder
):
    spec = catalog.resolve(name)
    monkeypatch.setenv(mirror, "http://mirror")
    monkeypatch.setenv(folder, str(tmp_path))
    assert download.addresses(spec)[-1] == f"http://mirror/{spec.filename}"
    assert download.cache_path(spec) == tmp_path / str(spec.filename)


def test_a_missing_file_says_where_to_put_it(site: Site):
    site.files = {}
    with pytest.raises(DataError) as error:
        download.fetch(SPEC)
    assert str(error.value) == (
        f"{site.url}/halfcheetah_medium-v2.hdf5 could not be fetched (HTTP 404 Not Found). Run again, set "
        f"GTP_FAST_D4RL_URL to a mirror, or put the file at {download.cache_path(SPEC)}; --dataset FILE reads "
        "it from any other path"
    )


def published(site: Site, monkeypatch: pytest.MonkeyPatch, **changes: object) -> catalog.DataSpec:
    """Return an entry whose published address is the test's server."""
    monkeypatch.delenv("GTP_FAST_D4RL_URL")
    return replace(SPEC, url=site.url + PLACE, **changes)  # type: ignore[arg-type]


def test_a_published_file_with_the_right_checksum_is_taken(site: Site, content: bytes, monkeypatch: pytest.MonkeyPatch):
    sha = hashlib.sha256(content).hexdigest()
    spec = published(site, monkeypatch, size=len(content), sha256=sha)
    assert download.fetch(spec).read_bytes() == content


def test_a_published_file_of_another_size_is_not_kept(site: Site, content: bytes, monkeypatch: pytest.MonkeyPatch):
    spec = published(site, monkeypatch, size=5, sha256=None)
    with pytest.raises(DataError, match=re.escape(f"gave {len(content):,} bytes, expected 5; nothing was kept")):
        download.fetch(spec)
    assert left_over() == []


def test_a_published_file_with_another_checksum_is_not_kept(site: Site, monkeypatch: pytest.MonkeyPatch):
    spec = published(site, monkeypatch, size=None, sha256="0" * 64)
    with pytest.raises(DataError, match=r"gave SHA-256 [0-9a-f]{64}, expected 0{64}; nothing was kept"):
        download.fetch(spec)
    assert left_over() == []


def test_a_server_that_promises_more_than_it_has_is_not_believed(site: Site):
    site.lie = 10
    with pytest.raises(DataError, match="could not be fetched"):
        download.fetch(SPEC)
    assert SPEC.filename not in left_over()


@pytest.mark.parametrize(
    ("base", "why"),
    [("http://127.0.0.1:9", "refused"), ("http://no-such-host.invalid", ""), ("not an address", "unknown url type")],
    ids=["no server", "no host", "no address"],
)
def test_without_a_server_it_fails_in_seconds_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, why: str
):
    monkeypatch.setenv("GTP_FAST_D4RL_URL", base)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(DataError, match=re.escape(f"put the file at {tmp_path / str(SPEC.filename)}")) as error:
        download.fetch(SPEC)
    assert base in str(error.value) and why in str(error.value) and time.monotonic() - began < 10


def test_a_name_look_up_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", lambda *_, **__: time.sleep(5))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"no answer in 0.2 seconds"):
        download.fetch(SPEC)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set D4RL_DATASET_DIR to a folder that you can write to"):
        download.fetch(SPEC)


FETCH = "from gtp_fast.data import catalog, download; download.fetch(catalog.resolve('halfcheetah-medium-v2'))"


def fetch_in_a_process() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH], stderr=subprocess.PIPE, text=True)


def test_a_killed_download_is_continued_where_it_was(site: Site, content: bytes):
    site.pause = 0.1
    process = fetch_in_a_process()
    wait_for(lambda: part().exists() and part().stat().st_size >= 2 << 16)
    process.kill()
    process.communicate()
    site.pause = 0.0
    assert download.fetch(SPEC).read_bytes() == content
    assert int(str(site.asked[-1][1])[6:-1]) >= 2 << 16


def test_a_second_process_waits_and_then_finds_the_file(site: Site, content: bytes):
    site.pause = 0.1
    first = fetch_in_a_process()
    wait_for(lambda: part().exists() and part().stat().st_size)
    second = fetch_in_a_process()
    said = f"{download.cache_path(SPEC)} is in use by process {first.pid} on "
    assert said in second.communicate(timeout=30)[1]
    assert first.wait(30) == second.returncode == 0 and len(site.asked) == 1
    assert download.cache_path(SPEC).read_bytes() == content


def _train(tmp_path: Path) -> None:
    small = ["--steps", "4", "--hidden", "16", "--batch-size", "8", "--eval-every", "0", "--threads", "1"]
    main(["train", "--env", SPEC.name, "--run-dir", str(tmp_path / "run"), *small])


@pytest.mark.parametrize("cuts", [[], [500_000]], ids=["whole", "cut off half-way"])
def test_training_by_name_fetches_the_file_first(site: Site, content: bytes, tmp_path: Path, cuts: list[int]):
    site.cut_at = list(cuts)
    _train(tmp_path)
    assert download.cache_path(SPEC).read_bytes() == content and len(site.asked) == 1 + len(cuts)
    site.files.clear()
    assert len(dataset.load(SPEC).obs_ND) == 20 * 499  # from the cache, with nothing on the server


def test_training_with_neither_file_nor_network_says_where_to_put_it(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GTP_FAST_D4RL_URL", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(SystemExit) as ended:
        _train(tmp_path)
    assert ended.value.code == 3 and str(tmp_path / "cache" / str(SPEC.filename)) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

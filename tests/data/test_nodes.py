"""A data file that leads out of itself is refused by key: to other files, to plugins, to more than fits in memory."""

from __future__ import annotations

import json
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import ogbench_cases
import pytest
from data_cases import columns, paste, refusal, write
from h5py import h5d, h5p, h5pl, h5s, h5t, h5z
from minari_cases import BOX, UNIT, collect
from run_cases import python

from gtp_fast.data import dataset, hdf5, minari
from gtp_fast.data.catalog import resolve
from gtp_fast.data.check import check
from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import DataError

SPEC = resolve("HalfCheetah-v5")
ANY = DataSpec("any", "file")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Minari's metadata that these sets leave out


def own(path: Path, change: Callable[[h5py.File, np.ndarray], None]) -> Path:
    """Write a data set, beside it its observations in another file, and put something else in their place."""
    values = columns()
    seen = values["observations"]
    write(path.with_name("other"), {"observations": seen, "infos/final_observations": seen[:3]})
    with h5py.File(write(path, values), "a") as file:
        del file["observations"]
        change(file, seen)
    return path


def linked(file: h5py.File, seen: np.ndarray) -> None:
    file["observations"] = h5py.ExternalLink("other", "/observations")


def linked_by_way_of_a_soft_link(file: h5py.File, seen: np.ndarray) -> None:
    file["away"] = h5py.ExternalLink("other", "/")
    file["observations"] = h5py.SoftLink("/away/observations")


def stored_outside(file: h5py.File, seen: np.ndarray) -> None:
    raw = Path(file.filename).with_name("raw")
    raw.write_bytes(seen.tobytes())
    file.create_dataset("observations", seen.shape, seen.dtype, external=[(str(raw), 0, seen.nbytes)])


def virtual(file: h5py.File, seen: np.ndarray) -> None:
    layout = h5py.VirtualLayout(seen.shape, seen.dtype)
    layout[:] = h5py.VirtualSource("other", "observations", seen.shape)
    file.create_virtual_dataset("observations", layout)


def in_a_circle(file: h5py.File, seen: np.ndarray) -> None:
    file["observations"] = h5py.SoftLink("/back")
    file["back"] = h5py.SoftLink("/observations")


ELSEWHERE = {
    "a link": (linked, "an external link to '/observations' in the file 'other'"),
    "a link behind a link": (linked_by_way_of_a_soft_link, "an external link to '/' in the file 'other'"),
    "raw bytes": (stored_outside, "stored outside the file, in '"),
    "a virtual data set": (virtual, "a virtual data set, whose values lie in 'other'"),
    "a circle": (in_a_circle, "a soft link to '/"),
}


@pytest.mark.parametrize(("change", "seen"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_data_that_lie_in_another_file_are_refused_by_key(tmp_path: Path, change: Any, seen: str):
    path = own(tmp_path / "a.hdf5", change)
    said = refusal(path, SPEC)
    assert said.startswith(f"FILE: observations is {seen}") and "only what lies in this one file is read" in said
    assert check(path, SPEC)["faults"][0]["message"].replace(str(path), "FILE") == said


@pytest.mark.parametrize("change", [linked, stored_outside, virtual])
def test_the_lines_of_the_refusal_bring_the_data_into_the_file(tmp_path: Path, monkeypatch, change: Any):
    monkeypatch.chdir(tmp_path)  # where the source of a virtual data set is looked for
    path = own(tmp_path / "a.hdf5", change)
    paste(refusal(path, SPEC), path)
    for name in ("other", "raw"):
        (tmp_path / name).unlink(missing_ok=True)
    assert dataset.load(SPEC, path).obs_ND[5, 0] == 5.0


def test_an_optional_column_or_its_group_in_another_file_is_refused_too(tmp_path: Path):
    def change(file: h5py.File, seen: np.ndarray) -> None:
        file["observations"], file["infos"] = seen, h5py.ExternalLink("other", "/infos")

    said = refusal(own(tmp_path / "a.hdf5", change), SPEC)
    assert said.startswith("FILE: infos/final_observations is an external link to '/infos' in the file 'other'")


def test_what_is_not_read_may_lead_anywhere_and_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")  # who opens it waits for ever

    def change(file: h5py.File, seen: np.ndarray) -> None:
        file["observations"] = seen
        file["notes"] = h5py.ExternalLink("pipe", "/")

    path = own(tmp_path / "a.hdf5", change)
    assert len(dataset.load(SPEC, path).obs_ND) == 57 and check(path, SPEC)["ready"]
    with h5py.File(path, "a") as file:
        file.move("actions", "acts")
    assert "rename acts to actions" in refusal(path, SPEC)


def test_soft_and_hard_links_inside_the_file_are_followed(tmp_path: Path):
    def change(file: h5py.File, seen: np.ndarray) -> None:
        file["states/raw/array"] = seen
        file["states/here"] = h5py.SoftLink("raw")
        file["observations"] = h5py.SoftLink("/states/here/array")
        file["states/raw/up"] = file["states"]  # a circle of groups

    assert dataset.load(SPEC, own(tmp_path / "a.hdf5", change)).obs_ND[5, 0] == 5.0


def packed_by(code: int, path: Path) -> Path:
    """Write a data set whose observations name a filter."""

    def change(file: h5py.File, seen: np.ndarray) -> None:
        made = h5p.create(h5p.DATASET_CREATE)
        made.set_chunk(seen.shape)
        made.set_filter(code, h5z.FLAG_OPTIONAL)
        h5d.create(file.id, b"observations", h5t.NATIVE_FLOAT, h5s.create_simple(seen.shape), made)

    return own(path, change)


def test_a_filter_of_a_plugin_is_refused_and_no_library_is_looked_for(tmp_path: Path):
    path = packed_by(32_001, tmp_path / "a.hdf5")
    assert "FILE: observations is packed by the filter 32001 ('" in refusal(path, SPEC)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "libtrap.so").write_bytes(b"not a library")
    program = (
        "import os, sys; os.environ['HDF5_PLUGIN_PATH'] = sys.argv[1]\n"
        "from pathlib import Path; from gtp_fast.data import nodes\n"
        "with nodes.opened(Path(sys.argv[2])) as file: print(file.get('observations'), nodes.h5pl.size())\n"
        "print(nodes.h5pl.get(0).decode())"
    )
    said = python(program, str(tmp_path / "plugins"), str(path)).stdout.splitlines()
    assert said[0].startswith("Refused") and said[0].endswith(" 0") and said[1] == str(tmp_path / "plugins")


def test_the_search_for_plugins_is_as_before_after_a_file_that_cannot_be_read(tmp_path: Path):
    before = [h5pl.get(i) for i in range(h5pl.size())]
    (tmp_path / "a.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    refusal(tmp_path / "a.hdf5", SPEC)
    assert [h5pl.get(i) for i in range(h5pl.size())] == before


@pytest.mark.parametrize("kind", ["gzip", "lzf", "szip"])
def test_what_h5py_itself_packs_is_read(tmp_path: Path, kind: str):
    def change(file: h5py.File, seen: np.ndarray) -> None:
        file.create_dataset("observations", data=seen, compression=kind, shuffle=True, fletcher32=True)

    if kind == "szip" and not h5z.filter_avail(h5z.FILTER_SZIP):
        pytest.skip("this h5py has no szip")
    assert dataset.load(SPEC, own(tmp_path / "a.hdf5", change)).obs_ND[5, 0] == 5.0


def bomb(path: Path, unpacked: int) -> Path:
    """Write a data set with a chunk of zeros whose zlib stream unpacks to so many bytes."""

    def change(file: h5py.File, seen: np.ndarray) -> None:
        made = file.create_dataset("observations", seen.shape, seen.dtype, chunks=seen.shape, compression="gzip")
        packing = zlib.compressobj()
        stream = b"".join(packing.compress(bytes(1 << 20)) for _ in range(unpacked >> 20)) + packing.flush()
        made.id.write_direct_chunk((0, 0), stream)

    return own(path, change)


def test_a_chunk_that_unpacks_to_more_than_it_declares_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch):
    path = bomb(tmp_path / "a.hdf5", 64 << 20)
    monkeypatch.setattr(hdf5, "machine_memory", lambda: 32 << 20)
    said = refusal(path, SPEC)
    assert said == (
        "FILE: a chunk of observations declares 4,080 bytes and unpacks to more, which can fill the memory; fetch the "
        "file again, or write it without compression"
    )


def test_chunks_larger_than_the_memory_are_refused(tmp_path: Path, monkeypatch):
    def change(file: h5py.File, seen: np.ndarray) -> None:
        made = file.create_dataset(
            "observations", seen.shape, "f4", maxshape=(None, 17), chunks=(1 << 20, 17), compression="gzip"
        )
        made[:] = seen

    path = own(tmp_path / "a.hdf5", change)
    monkeypatch.setattr(hdf5, "machine_memory", lambda: 1 << 26)
    assert "observations is packed in chunks of 0.071 GB" in refusal(path, SPEC)


# ---- sizes are summed


def test_columns_that_fit_alone_and_not_together_are_refused_before_any_is_read(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.hdf5"
    rows = 1 << 20
    with h5py.File(path, "w") as file:
        for key, width in (("observations", 17), ("next_observations", 17), ("actions", 6)):
            file.create_dataset(key, (rows, width), "f4", chunks=(1024, width))  # nothing is stored
        for key in ("rewards", "terminals", "timeouts"):
            file.create_dataset(key, (rows,), "f4", chunks=(1024,))
    monkeypatch.setattr(hdf5, "machine_memory", lambda: 100 << 20)
    monkeypatch.setattr(h5py.Dataset, "read_direct", lambda *_: pytest.fail("it was read"))
    said = refusal(path, SPEC)
    assert said.startswith("FILE: its columns declare 0.18 GB together, and this machine has 0.1 GB of memory (")
    assert "observations 0.07, actions 0.03, rewards 0.004, next_observations 0.07, terminals 0.005" in said
    assert check(path, SPEC)["faults"][0]["message"].replace(str(path), "FILE") == said


def test_shards_that_fit_alone_and_not_together_are_refused_before_any_is_read(tmp_path: Path, monkeypatch):
    for name in "abc":
        write(tmp_path / f"{name}.hdf5", columns(episodes=2, length=500))
    monkeypatch.setattr(hdf5, "machine_memory", lambda: 250_000)  # one has 101,000 bytes
    monkeypatch.setattr(h5py.Dataset, "read_direct", lambda *_: pytest.fail("it was read"))
    said = refusal(tmp_path, SPEC)
    assert said == (
        "FILE: its 3 shards declare 0.0003 GB together, and this machine has 0.00025 GB of memory; name fewer of them, "
        "or use a larger machine"
    )
    assert check(tmp_path, SPEC)["faults"][0]["message"].replace(str(tmp_path), "FILE") == said


def test_an_attribute_of_one_huge_text_is_not_read(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", columns())
    with h5py.File(path, "a") as file:
        file.attrs.create("action_units", np.array("x" * 50_000, "S50000"))
    assert "the attribute action_units declares" in refusal(path, SPEC)


def test_a_reference_in_an_attribute_is_not_followed(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", columns())
    with h5py.File(path, "a") as file:
        file.attrs["action_units"] = file["observations"].ref
    assert "the attribute action_units is '<HDF5 object reference>', expected" in refusal(path, SPEC)


def test_a_file_of_very_many_groups_is_refused_in_seconds(tmp_path: Path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for number in range(5_000):
            file[f"g{number}"] = h5py.SoftLink("/g0")
    assert "FILE has no observations, actions" in refusal(tmp_path / "a.hdf5", SPEC)


# ---- Minari's files


def main_data(path: Path) -> Path:
    return path / "data" / "main_data.hdf5"


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    return collect("walk/box-v0", BOX, UNIT)


@pytest.mark.parametrize("key", ["observations", "rewards"])
def test_an_array_of_minaris_in_another_file_is_refused(walk: Path, key: str):
    with h5py.File(main_data(walk), "a") as file:
        file.move(f"episode_1/{key}", "away")
        with h5py.File(walk / "data" / "additional_data_0.hdf5", "w") as other:
            file.copy("away", other, "x")
        del file["away"]
        file[f"episode_1/{key}"] = h5py.ExternalLink("additional_data_0.hdf5", "/x")
    assert refusal(walk, ANY) == (
        f"FILE: episode_1/{key} is an external link to '/x' in the file 'additional_data_0.hdf5', and only what lies "
        "in this data set's own files is read; download it again"
    )


def move_an_episode(walk: Path, file_name: str, path: str = "/episode_0") -> None:
    """Move the last episode into another file, to which a link leads, as Minari's writers before 0.5 did."""
    with h5py.File(main_data(walk), "a") as file, h5py.File(walk / "data" / "additional_data_0.hdf5", "w") as other:
        file.copy("episode_2", other, "episode_0")
        del file["episode_2"]
        file["episode_2"] = h5py.ExternalLink(file_name, path)


def test_the_additional_files_that_minari_wrote_before_are_read_and_hashed(walk: Path):
    whole = dataset.load(ANY, walk)
    move_an_episode(walk, "additional_data_0.hdf5")
    again = dataset.load(ANY, walk)
    assert again.sha256 == whole.sha256 and np.array_equal(again.obs_ND, whole.obs_ND)
    with h5py.File(walk / "data" / "additional_data_0.hdf5", "a") as other:
        other["episode_0/rewards"][0] = 7.0
    assert dataset.load(ANY, walk).sha256 != whole.sha256


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("../additional_data_0.hdf5", "/episode_0"),
        ("additional_data_0.hdf5", "/"),
        ("additional_data_9.hdf5", "/episode_0"),
    ],
    ids=["outside the folder", "no episode", "a symbolic link"],
)
def test_an_episode_elsewhere_is_refused(walk: Path, file: str, path: str):
    move_an_episode(walk, file, path)
    (walk / "data" / "additional_data_9.hdf5").symlink_to(walk / "data" / "additional_data_0.hdf5")
    assert f"FILE: episode_2 is an external link to '{path}' in the file '{file}', and only what" in refusal(walk, ANY)


def test_arrays_of_an_episode_that_fit_alone_and_not_together_are_refused(walk: Path, monkeypatch):
    monkeypatch.setattr(minari, "MEMORY", 4_000)
    with h5py.File(main_data(walk), "a") as file:
        for key, width in (("observations", (500,)), ("actions", (2,))):
            del file[f"episode_0/{key}"]
            file.create_dataset(f"episode_0/{key}", width, "f4", chunks=width)
        del file["episode_0/rewards"]
        file.create_dataset("episode_0/rewards", (300,), "f8", chunks=(300,))
    assert "the arrays up to rewards declare, or unpack to, more than this machine's memory" in refusal(walk, ANY)


HUGE = {
    "a box": {"type": "Box", "dtype": "float32", "shape": [10**9], "low": -1.0, "high": 1.0},
    "parts": {
        "type": "Tuple",
        "subspaces": [{"type": "Box", "dtype": "float32", "shape": [9**9], "low": 0, "high": 1}],
    },
}


@pytest.mark.parametrize("space", HUGE.values(), ids=HUGE.keys())
def test_a_space_too_large_to_build_is_refused_before_it_is_built(walk: Path, space: dict[str, Any]):
    file = walk / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"observation_space": json.dumps(space)}))
    with pytest.raises(DataError, match=r"walk/box-v0: observation_space in metadata.json declares a Box of more than"):
        dataset.load(ANY, walk)


METADATA = {
    "too long": ('{"a": "' + "x" * (1 << 25) + '"}', "metadata.json has 33,554,441 bytes, expected at most 16,777,216"),
    "too deep": ("[" * 100_000 + "]" * 100_000, "cannot be read as a Minari data set (RecursionError"),
    "huge number": ('{"total_episodes": ' + "9" * 5_000 + "}", "cannot be read as a Minari data set (ValueError"),
    "endless": ('{"total_episodes": 1e400}', "metadata.json declares no observation_space"),
}


@pytest.mark.parametrize(("text", "said"), METADATA.values(), ids=METADATA.keys())
def test_metadata_of_any_content_are_refused(walk: Path, text: str, said: str):
    (walk / "data" / "metadata.json").write_text(text)
    assert said in refusal(walk, ANY)


# ---- special files


def pipe(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the name of a socket has at most a hundred characters


SPECIAL = {"a pipe": pipe, "a device": zeros, "a circle of links": circle, "a socket": listening}
SEEN = {
    "a pipe": "is a named pipe",
    "a device": "is a device",
    "a circle of links": "does not exist",
    "a socket": "is a socket",
}


@pytest.mark.parametrize("suffix", [".hdf5", ".npz", ".h5", ""])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_ordinary_file_is_named_and_not_opened(tmp_path: Path, monkeypatch, kind: str, suffix: str):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    SPECIAL[kind](path)
    for spec in (SPEC, resolve("cube-single-play-singletask-v0")):
        assert refusal(path, spec).startswith(f"FILE {SEEN[kind]}")
    assert SEEN[kind] in check(path, SPEC)["faults"][0]["message"]


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_shard_that_is_no_ordinary_file_is_named(tmp_path: Path, monkeypatch, kind: str):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.hdf5", columns())
    SPECIAL[kind](tmp_path / "b.hdf5")
    assert refusal(tmp_path, SPEC).startswith(f"FILE/b.hdf5 {SEEN[kind]}")


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a socket"])
def test_a_file_of_minaris_that_is_no_ordinary_file_is_named(walk: Path, monkeypatch, kind: str, name: str):
    monkeypatch.chdir(walk / "data")
    (walk / "data" / name).unlink()
    SPECIAL[kind](walk / "data" / name)
    assert refusal(walk, ANY).startswith(f"FILE/data/{name} {SEEN[kind]}")


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a socket"])
def test_minari_itself_is_given_no_folder_with_other_than_ordinary_files(walk: Path, monkeypatch, kind: str):
    monkeypatch.chdir(walk / "data")
    file = walk / "data" / "metadata.json"
    file.write_text(file.read_text().replace('"hdf5"', '"parquet"'))
    SPECIAL[kind](walk / "data" / "part-0.parquet")
    assert refusal(walk, ANY).startswith(f"FILE/data/part-0.parquet {SEEN[kind]}")


def test_a_link_that_the_user_typed_is_followed(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns())
    (tmp_path / "b.hdf5").symlink_to(tmp_path / "a.hdf5")
    assert dataset.load(SPEC, tmp_path / "b.hdf5").sha256 == dataset.load(SPEC, tmp_path / "a.hdf5").sha256


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5_000 + ", 28)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3_000 + ")" * 3_000 + "}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 6_000 + "1, 28)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 4_000 + ")}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (63, 28)}",
    ],
    ids=["digits", "brackets", "signs", "axes", "objects"],
)
def test_a_header_of_an_array_of_any_content_is_refused(tmp_path: Path, header: str):
    path = ogbench_cases.write(tmp_path / "a.npz", ogbench_cases.columns() | {"observations": None})
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observations.npy", content)
    assert refusal(path, resolve("cube-single-play-singletask-v0")).startswith("FILE")


def test_names_from_a_file_reach_no_terminal_as_they_are(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", {"\x1b[2J\x07gone": np.zeros(3), **columns(), "rewards": None})
    assert refusal(path, SPEC).isprintable()

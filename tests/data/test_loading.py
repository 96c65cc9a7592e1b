"""Loading takes little more memory than what is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_cases import python

ROWS = 500_000  # fewer, and what every process takes once would count
MEASURE = """
import sys
from pathlib import Path
from gtp_fast.data import dataset
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.config import TrainConfig
from gtp_fast.data.spec import DataSpec

def most():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = most()
data = dataset.load(DataSpec("own", "file"), Path(sys.argv[1]))
loaded = most() - before
buffer = ReplayBuffer.from_transitions(data, TrainConfig(env="own"), "cpu")
print(loaded, most() - before, buffer.size)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "rows.hdf5"
    with h5py.File(path, "w") as out:
        for name in ("observations", "next_observations"):
            out[name] = rng.normal(size=(ROWS, 17)).astype(np.float32)
        out["actions"] = rng.uniform(-1, 1, size=(ROWS, 6)).astype(np.float32)
        out["rewards"] = rng.normal(size=ROWS).astype(np.float32)
        out["terminals"], out["timeouts"] = np.zeros(ROWS, bool), np.arange(1, ROWS + 1) % 1000 == 0
        # What files without them hold, their successors to be made: time limits are left out.
    return path


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the largest memory of a process")
@pytest.mark.parametrize(("successors", "load", "all_in_all"), [(True, 2.0, 3.0), (False, 3.0, 3.0)])
def test_a_file_is_loaded_and_packed_within_a_few_times_its_arrays(file: Path, successors, load, all_in_all):
    with h5py.File(file, "a") as held:
        if not successors:
            del held["next_observations"]
        arrays = sum(4 * data.size if data.dtype.kind == "f" else data.size for data in held.values())
    loaded, most, size = map(int, python(MEASURE, str(file)).stdout.split())
    assert size == (ROWS if successors else ROWS - ROWS // 1000)
    assert loaded < load * arrays and most < all_in_all * arrays

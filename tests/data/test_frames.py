"""Frames are kept once, uint8; stacks and successors are read by number and never cross an episode; shifts repeat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_cases import columns, write
from frame_cases import ACTION_DIM, arrays, frame_buffer, frame_config, frame_transitions
from hypothesis import given, settings
from hypothesis import strategies as st

from gtp_fast.data import dataset
from gtp_fast.data.buffers import buffer_of, bytes_on_device, check_settings
from gtp_fast.data.frames import PAD, FrameBuffer
from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import DataError, UsageError

STEP = torch.tensor(3)


def _all(buffer: FrameBuffer):
    return buffer.gather(torch.arange(buffer.size)[None], STEP)


def _numbers(obs: torch.Tensor, channels: int) -> np.ndarray:
    """Read the number that each frame of a stack carries, (B, n)."""
    first = obs[0, :, 0, 0].long().unflatten(-1, (-1, channels))
    return (256 * first[..., 0] + first[..., 1]).numpy()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    stack=st.integers(1, 5),
    last=st.sampled_from(["row", "key", "nowhere"]),
)
def test_stacks_stay_in_their_episode_and_successors_follow(lengths, stack, last):
    data = frame_transitions(arrays(lengths, last=last))
    cfg = frame_config(frame_stack=stack, augment=0.0)
    batch = _all(FrameBuffer.from_transitions(data, cfg, "cpu"))
    obs, following = _numbers(batch.obs_SBD, 2), _numbers(batch.next_obs_SBD, 2)
    row, at = 0, 0
    for episode, length in enumerate(lengths):
        frames = [at + i for i in range(length)]
        frames.append({"row": at + length, "key": sum(lengths) + episode, "nowhere": at + length - 1}[last])
        for i in range(length):
            expected = [frames[max(i - back, 0)] for back in reversed(range(stack))]
            assert obs[row].tolist() == expected
            assert following[row].tolist() == [*expected[1:], frames[i + 1]]
            assert batch.bootstrap_SB[0, row] == float(not (last == "nowhere" and i == length - 1))
            row += 1
        at += length + (last == "row")
    assert row == len(data.reward_N)


def test_a_piece_without_an_end_keeps_what_has_a_successor():
    found = arrays([4, 3])
    data = frame_transitions(replace(found, timeout=np.concatenate([found.timeout[:-1], [False]])))
    assert data.obs_ND.tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [5, 5], [6, 5], [7, 5]]


def test_actions_and_rewards_are_those_of_the_row():
    cfg = frame_config(reward_scale=2.0, reward_shift=-1.0)
    data = frame_transitions(arrays([5, 4]))
    batch = _all(FrameBuffer.from_transitions(data, replace(cfg, batch_size=9), "cpu"))
    assert np.array_equal(batch.action_SBA[0].numpy(), data.action_NA)
    assert np.allclose(batch.reward_SB[0].numpy(), (data.reward_N - 1.0) * 2.0)


@pytest.mark.parametrize("stack", [1, 3])
def test_the_device_holds_every_frame_once_and_a_small_row(stack):
    data = frame_transitions(arrays([50, 70]))
    buffer = FrameBuffer.from_transitions(data, frame_config(frame_stack=stack), "cpu")
    # 122 frames of 8 x 9 x 2 bytes; 120 transitions of 2 actions, reward, bootstrap and three numbers of frames.
    held = buffer.frames.nbytes + buffer.rows.nbytes + buffer.place.nbytes
    assert held == 122 * 8 * 9 * 2 + 120 * (4 * 4 + 3 * 8) == bytes_on_device(data, frame_config())


def test_a_million_frames_of_64_pixels_take_12_gigabytes():
    one = frame_transitions(arrays([9_999], shape=(64, 64, 3)))
    assert 12.28e9 < 100 * bytes_on_device(one, frame_config()) < 12.34e9


def test_shifts_stay_within_three_pixels_and_repeat_edges():
    cfg = frame_config(augment=1.0, seeds=2)
    buffer = frame_buffer(cfg)
    down, right = buffer.shifts(STEP)
    index = torch.arange(12).view(2, 6)
    batch, plain = buffer.gather(index, STEP), replace(buffer, augment=0.0).gather(index, STEP)
    assert int(down.abs().max()) <= PAD and int(right.abs().max()) <= PAD
    for moved, still in ((batch.obs_SBD, plain.obs_SBD), (batch.next_obs_SBD, plain.next_obs_SBD)):
        for s in range(2):
            for b in range(6):
                padded = np.pad(still[s, b].numpy(), ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
                top, left = PAD + int(down[s, b]), PAD + int(right[s, b])
                assert np.array_equal(moved[s, b].numpy(), padded[top : top + 8, left : left + 9])


def test_every_shift_comes_as_often_as_another():
    buffer = frame_buffer(frame_config(batch_size=7_000, augment=1.0))
    counts = [torch.bincount(shift.flatten() + PAD, minlength=7) for shift in buffer.shifts(STEP)]
    assert all(900 < int(count) < 1_100 for count in torch.cat(counts))  # 1,000 each, deviation 29


def test_half_of_the_steps_shift_and_then_whole_batches():
    buffer = frame_buffer(frame_config(batch_size=64))
    moved = [(buffer.shifts(torch.tensor(step))[0] != 0).float().mean() for step in range(400)]
    due = [share > 0 for share in moved]
    assert 160 < sum(due) < 240  # 200, deviation 10
    assert all(share > 0.5 for share, one in zip(moved, due, strict=True) if one)


def test_shifts_depend_on_the_seed_and_the_step_alone():
    together = frame_buffer(frame_config(seeds=3, augment=1.0))
    alone = frame_buffer(frame_config(seed=2, augment=1.0))
    assert torch.equal(together.shifts(STEP)[0][2:], alone.shifts(STEP)[0])
    assert not torch.equal(alone.shifts(STEP)[0], alone.shifts(STEP + 1)[0])


def test_a_file_of_pictures_is_read_as_it_is(tmp_path):
    values = columns(episodes=3, length=5, sizes=(4, ACTION_DIM))
    values["observations"] = np.random.default_rng(0).integers(0, 256, (15, 8, 8, 3), dtype=np.uint8)
    data = dataset.load(DataSpec("x", "file"), write(tmp_path / "x.hdf5", values))
    assert data.frames_FHWC is not None and data.frames_FHWC.dtype == np.uint8
    assert np.array_equal(data.frames_FHWC, values["observations"])
    assert len(data.reward_N) == 12  # a row that ends an episode by its time limit has no successor here
    assert dataset.info(data)["obs_dim"] == [8, 8, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"next_obs": np.zeros((8, 8, 9, 2), np.uint8)}, "second copy"),
        ({"obs": np.zeros((8, 4, 9, 2), np.uint8)}, r"images of \(4, 9, 2\)"),
        ({"obs": np.zeros((8, 8, 9, 2), np.float32)}, "expected 2 axes"),
        ({"last_obs": np.zeros((2, 8, 9, 2), np.float32)}, "float32 beside observations of uint8"),
        ({"last_obs": np.zeros((2, 9, 9, 2), np.uint8)}, r"infos/final_observations has shape \(2, 9, 9, 2\)"),
    ],
    ids=["next", "small", "float", "last-float", "last-shape"],
)
def test_pictures_that_cannot_be_kept_once_are_refused(changes, said):
    with pytest.raises(DataError, match=said):
        frame_transitions(arrays([3, 3], **changes))


def test_pictures_of_an_environment_of_numbers_are_refused(tmp_path):
    values = columns(episodes=2, length=5, sizes=(4, 6)) | {"observations": np.zeros((10, 8, 8, 3), np.uint8)}
    with pytest.raises(DataError, match=r"images of \(8, 8, 3\), but HalfCheetah has 17"):
        dataset.load(DataSpec("HalfCheetah", "file", obs_dim=17), write(tmp_path / "x.hdf5", values))


@pytest.mark.parametrize(("name", "value"), [("frame_stack", 3), ("augment", 0.1)])
def test_settings_of_frames_are_refused_for_numbers(name, value, tmp_path):
    data = dataset.load(DataSpec("x", "file"), write(tmp_path / "x.hdf5", columns()))
    cfg = replace(frame_config(frame_stack=1), **{name: value})
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} {value} is for frames"):
        check_settings(data, cfg)


def test_vectors_keep_their_packed_rows(tmp_path):
    data = dataset.load(DataSpec("x", "file"), write(tmp_path / "x.hdf5", columns()))
    cfg = frame_config(frame_stack=1)
    assert buffer_of(data, cfg, torch.zeros((), dtype=torch.int64)).rows.nbytes == bytes_on_device(data, frame_config())

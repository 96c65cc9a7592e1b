"""The replay buffer gives back what was packed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from frame_cases import arrays, frame_config, frame_transitions
from hypothesis import given, settings
from hypothesis import strategies as st
from learn_cases import transitions

from gtp_fast import rng
from gtp_fast.config import TrainConfig
from gtp_fast.data import streaming
from gtp_fast.data.frames import FrameBuffer
from gtp_fast.data.replay import ReplayBuffer, row_width
from gtp_fast.data.transitions import Arrays, build_transitions


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_gathered_rows_are_the_transitions(size, obs_dim, action_dim, seed):
    data = transitions(size, obs_dim, action_dim, seed)
    buffer = ReplayBuffer.from_transitions(data, TrainConfig(env="x"), "cpu")
    index = torch.from_numpy(np.random.default_rng(seed).integers(0, size, (2, 5)))
    batch, i = buffer.gather(index), index.numpy()
    assert (buffer.size, buffer.rows.nbytes) == (size, size * row_width(obs_dim, action_dim) * 4)
    np.testing.assert_array_equal(batch.obs_SBD, data.obs_ND[i])
    np.testing.assert_array_equal(batch.action_SBA, data.action_NA[i])
    np.testing.assert_array_equal(batch.reward_SB, data.reward_N[i])
    np.testing.assert_array_equal(batch.bootstrap_SB, 1.0 - data.terminal_N[i])
    np.testing.assert_array_equal(batch.next_obs_SBD, data.next_obs_ND[i])


def test_antmaze_reward_is_shifted_before_it_is_scaled():
    data = transitions(3, 2, 1)
    data.reward_N = np.array([0.0, 1.0, 1.0], dtype=np.float32)
    cfg = TrainConfig(env="x", reward_shift=-0.5, reward_scale=4.0)
    batch = ReplayBuffer.from_transitions(data, cfg, "cpu").gather(torch.arange(3)[None])
    assert batch.reward_SB.tolist() == [[-2.0, 2.0, 2.0]]


def test_rows_are_padded_to_16_bytes():
    assert [row_width(17, 6), row_width(11, 3), row_width(1, 1)] == [44, 28, 8]


def test_rows_that_successors_were_made_in_are_taken_once_and_no_transition_changes():
    rng, ends = np.random.default_rng(0), np.arange(40) % 10 == 9
    columns = {"obs": rng.normal(size=(40, 3)), "action": rng.uniform(-1, 1, (40, 2)), "reward": rng.normal(size=40)}
    floats = {name: column.astype(np.float32) for name, column in columns.items()}
    held = Arrays("here", **floats, terminal=ends & False, timeout=ends, next_obs=None, last_obs=None, sha256="")
    whole = floats["obs"].copy()
    data = build_transitions(held, "own", "here", 0)
    first = ReplayBuffer.from_transitions(data, TrainConfig(env="x"), "cpu")
    before = first.rows.clone()
    second = ReplayBuffer.from_transitions(data, TrainConfig(env="x", reward_scale=2.0), "cpu")
    assert torch.equal(first.rows, before) and torch.equal(second.rows[:, 5], 2.0 * before[:, 5])
    kept = np.flatnonzero(~ends)
    for buffer in (first, second):
        batch = buffer.gather(torch.arange(36)[None])
        np.testing.assert_array_equal(batch.obs_SBD[0], whole[kept])
        np.testing.assert_array_equal(batch.next_obs_SBD[0], whole[kept + 1])
    assert first.rows.data_ptr() == data.next_obs_ND.base.ctypes.data != second.rows.data_ptr()


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    last=st.sampled_from(["row", "key", "nowhere"]),
    reward_shift=st.sampled_from([0.0, -1.0]),
    reward_scale=st.sampled_from([1.0, 0.5, -4.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_buffer_has_the_same_rewards_and_bootstraps(lengths, last, reward_shift, reward_scale, seed):
    """The observations are frames in one buffer and numbers in two, of which one is streamed."""
    frames, same = (arrays(lengths, seed=seed, last=last) for _ in range(2))  # each is taken over
    last_obs = None if same.last_obs is None else same.last_obs[:, 0, 0].astype(np.float32)
    numbers = replace(same, obs=same.obs[:, 0, 0].astype(np.float32), last_obs=last_obs)
    reward, terminal = frames.reward.copy(), frames.terminal.copy()
    cfg = frame_config(frame_stack=1, augment=0.0, reward_shift=reward_shift, reward_scale=reward_scale, seeds=2)
    data = build_transitions(numbers, "own", "here", 0)
    step = torch.zeros((), dtype=torch.int64)
    streamed = streaming.make_buffer(data, replace(cfg, buffer="host"), step)
    streamed.stager.ready(0)
    index = rng.indices(rng.seed_keys([0, 1], "cpu"), 0, 1, cfg.batch_size, len(data.reward_N))[0]
    batches = [
        FrameBuffer.from_transitions(frame_transitions(frames), cfg, "cpu").gather(index, step),
        ReplayBuffer.from_transitions(data, cfg, "cpu").gather(index, step),
        streamed.gather(index, step),
    ]
    kept = np.flatnonzero(~frames_end(lengths, last))[index.numpy()]
    for batch in batches:
        expected = (reward[kept] + np.float32(reward_shift)) * np.float32(reward_scale)
        np.testing.assert_array_equal(batch.reward_SB, expected)
        np.testing.assert_array_equal(batch.bootstrap_SB, 1.0 - terminal[kept])


def frames_end(lengths: list[int], last: str) -> np.ndarray:
    """Say which rows only hold an episode's last observation."""
    return np.array([row == length for length in lengths for row in range(length + (last == "row"))])

"""Gymnasium's vector interface: the same as gymnasium's own vector environments make of the same worlds."""

import numpy as np
import pytest
import torch

from mimickit.envs.base import DoneFlag
from tests.unit.env_case import make_env, write_clip

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.vector import SyncVectorEnv  # noqa: E402
from gymnasium.wrappers import vector as wrappers  # noqa: E402

from mimickit.gym import VectorEnv  # noqa: E402

MODES = ("same_step", "next_step")
WORLDS = 4


def ends(world):
    """After how many steps an episode of a world ends, and how."""
    return 2 + world, (DoneFlag.FAIL, DoneFlag.TIME, DoneFlag.SUCC)[world % 3]


class Counting:
    """Worlds that count: an observation is (episode, step), a reward the step and what the action adds."""

    def __init__(self):
        self.device, self.num_envs, self.dt = torch.device("cpu"), WORLDS, 1 / 30
        self.action_low, self.action_high = -torch.ones(1), torch.ones(1)
        self.next_obs, self.obs = torch.zeros(WORLDS, 2), torch.zeros(WORLDS, 2)
        self.reward, self.done, self.info = torch.zeros(WORLDS), torch.zeros(WORLDS, dtype=torch.int32), {}

    def reset(self, worlds=None):
        mask = torch.ones(WORLDS, dtype=torch.bool) if worlds is None else worlds
        self.obs[mask] = torch.stack([self.obs[mask][:, 0] + 1, torch.zeros(int(mask.sum()))], 1)
        self.done[mask] = DoneFlag.NULL

    def step(self, action):
        self.obs[:, 1] += 1
        self.next_obs.copy_(self.obs)
        self.reward.copy_(self.obs[:, 1] + action[:, 0])
        self.done.copy_(torch.tensor([ends(i)[1] if self.obs[i, 1] == ends(i)[0] else 0 for i in range(WORLDS)]))
        done = self.done.clone()
        self.reset(done != DoneFlag.NULL)
        self.done.copy_(done)

    def close(self):
        self.closed = True


class CountingWorld(gymnasium.Env):
    """One of these worlds, for gymnasium's own vector environment."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, world):
        self.length, self.end = ends(world)
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        self.episode, self.count = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.count += 1
        ended = self.count == self.length
        return (np.array([self.episode, self.count], np.float32), self.count + action[0],
                ended and self.end != DoneFlag.TIME, ended and self.end == DoneFlag.TIME, {})


@pytest.mark.parametrize("mode", MODES)
def test_as_gymnasium_itself_does(mode):
    ours = VectorEnv(Counting(), mode)
    theirs = SyncVectorEnv([lambda i=i: CountingWorld(i) for i in range(WORLDS)],
                           autoreset_mode=ours.metadata["autoreset_mode"])
    assert ours.single_action_space == theirs.single_action_space and ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    first = ours.reset()[0], theirs.reset()[0]
    np.testing.assert_array_equal(first[0][:, 1], first[1][:, 1])
    ours.env.obs[:, 0], episodes = 1, []
    for number in range(12):
        action = np.full((WORLDS, 1), number / 16, np.float32)
        (obs, *rest, infos), (expected, *others, told) = ours.step(action), theirs.step(action)
        # next_step restarts a world a second time, so episodes are counted alike, not numbered alike
        changed = [pair[:, 0] != before for pair, before in zip((obs, expected), episodes)] if episodes else [[], []]
        assert list(changed[0]) == list(changed[1])
        episodes = [obs[:, 0].copy(), expected[:, 0].copy()]
        np.testing.assert_array_equal(obs[:, 1], expected[:, 1])
        for mine, its in zip(rest, others):
            np.testing.assert_array_equal(mine, its)
        ended = told.get("_final_obs", np.zeros(WORLDS, bool))
        assert ("final_obs" in infos) == ended.any()
        for world in ended.nonzero()[0]:
            assert infos["_final_obs"][world] and infos["final_obs"][world][1] == told["final_obs"][world][1]
    ours.close()
    assert ours.env.closed


@pytest.fixture
def env(tmp_path):
    """Four humanoids on an engine without physics, episodes of five steps."""
    return make_env("deepmimic", WORLDS, motion_file=write_clip(tmp_path / "clip.pkl"), episode_length=5 / 30,
                    enable_early_termination=False)


@pytest.mark.parametrize("mode", MODES)
def test_a_real_environment(env, mode):
    vector = VectorEnv(env, mode)
    obs, infos = vector.reset(seed=3)
    assert vector.observation_space.contains(obs) and infos == {}
    np.testing.assert_array_equal(obs, vector.reset(seed=3)[0])
    assert (obs != vector.reset(seed=4)[0]).any()
    lengths = []
    for _ in range(12):
        kept = obs.copy()
        action = vector.action_space.sample()
        obs2, reward, terminated, truncated, _ = vector.step(action)
        assert (obs == kept).all(), "outputs are copies"
        assert not terminated.any() and reward.dtype == np.float32 and vector.observation_space.contains(obs2)
        lengths.append(int(truncated.sum()))
        obs = obs2
    period = 5 if mode == "same_step" else 6
    assert [i + 1 for i, count in enumerate(lengths) if count] == [period - (period == 6), 2 * period - (period == 6)]


def test_tensors_stay_where_they_are(env):
    vector = VectorEnv(env, arrays="torch")
    obs, _ = vector.reset()
    for _ in range(5):
        obs, reward, terminated, truncated, infos = vector.step(torch.zeros(vector.action_space.shape))
    assert all(isinstance(value, torch.Tensor) for value in (obs, reward, terminated, truncated, *infos.values()))
    assert truncated.all() and infos["_final_obs"].all() and not (infos["final_obs"] == obs).all()
    torch.testing.assert_close(infos["final_obs"], env.next_obs)


def test_what_a_discriminator_needs(tmp_path):
    vector = VectorEnv(make_env("amp", WORLDS, motion_file=write_clip(tmp_path / "clip.pkl")))
    vector.reset()
    infos = vector.step(vector.action_space.sample())[-1]
    assert infos["disc_obs"].shape[0] == WORLDS and infos["_disc_obs"].all()


def test_gymnasiums_wrappers_take_it(env):
    stats = wrappers.RecordEpisodeStatistics(wrappers.RescaleAction(VectorEnv(env), -1.0, 1.0))
    stats.reset(seed=1)
    for _ in range(5):
        infos = stats.step(np.zeros(stats.action_space.shape, np.float32))[-1]
    assert list(infos["episode"]["l"]) == [5] * WORLDS
    normalized = wrappers.NormalizeObservation(VectorEnv(env, "next_step"))
    normalized.reset(seed=1)
    assert np.isfinite(normalized.step(normalized.action_space.sample())[0]).all()


def test_wrong_actions(env):
    with pytest.raises(ValueError, match=r"actions of shape \(28,\); needed is \(4, 28\)"):
        VectorEnv(env).step(np.zeros(28, np.float32))

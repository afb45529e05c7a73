"""Episodes in plain MuJoCo are measured by the names and definitions of the test stage."""

import itertools

import numpy as np
import pytest
import torch

from mimickit.deploy.loop import FAILED, Loop
from mimickit.deploy.measures import Episodes, _targets_reached
from tests.unit.deploy.export_case import make
from tests.unit.env_case import ROOT

SPINKICK = ROOT / "data/motions/humanoid/humanoid_spinkick.pkl"


def run(name, folder, lengths=(14, 9)):
    """Measures of an untrained policy's episodes, cut to lengths; the episodes; the environment."""
    env, _, policy = make(name, folder, 1, SPINKICK, log_tracking_error=True)
    free = policy.model_copy(update={"episode": policy.episode.model_copy(
        update={"contact_bodies": None, "pose_distance": None})})
    loop, measures, episodes = Loop(free, folder / "policy"), Episodes(policy, 50.0), []
    for index, length in enumerate(lengths):
        episodes.append([])
        loop.episode(np.random.default_rng(index), episodes[-1].append, length)
        measures.add(episodes[-1])
    return measures.result(), episodes, env


@pytest.mark.parametrize("name", ["PPO", "ADD", "ASE", "location", "steering"])
def test_the_names_are_those_of_the_environment(name, tmp_path):
    result, _, env = run(name, tmp_path)
    without_samples = {  # no target changed; no speed asked for was in that third
        "location": {"success_rate"}, "steering": {"vel_err_medium", "success_rate_medium"}}.get(name, set())
    assert set(result["measures"]) | {"foot_slide"} | without_samples == {*env.metrics(), "survival", "foot_slide"}
    assert (result["test_episodes"], result["test_episode_length"], result["nonfinite"]) == (2, 11.5, 0)
    assert result["measures"]["survival"] == 1.0, "they were cut, they did not fail"


def test_tracking_errors_by_hand(tmp_path):
    result, episodes, _ = run("PPO", tmp_path)
    steps = [step for episode in episodes for step in episode]
    roots = [step.state.root_pos - step.reference.root_pos for step in steps]
    assert result["measures"]["root_pos_err"] == pytest.approx(np.linalg.norm(roots, axis=-1).mean(), rel=1e-4)
    bodies = [step.state.body_pos - step.reference.body_pos - root for step, root in zip(steps, roots)]
    assert result["measures"]["body_pos_err"] == pytest.approx(np.linalg.norm(bodies, axis=-1).mean(), rel=1e-4)
    rates = [np.abs(b.action - a.action).mean() * 30 for episode in episodes
             for a, b in itertools.pairwise(episode[1:])]
    assert result["measures"]["action_rate"] == pytest.approx(np.mean(rates), rel=1e-4)
    assert result["statistics"]["action_rate"]["episodes"] == 2


def test_similarity_is_that_of_the_clip_for_the_clip_itself(tmp_path):
    """Episodes that are the clip have no distance from it, beyond that of the nearest snippet in time."""
    _, episodes, _ = run("AMP", tmp_path, lengths=(40,))
    _, _, policy = make("AMP", tmp_path, 1, SPINKICK)
    measures = Episodes(policy, 50.0)
    measures.add([step._replace(state=step.reference) for step in episodes[0]])
    perfect = measures.result()["measures"]
    measures = Episodes(policy, 50.0)
    measures.add(episodes[0])
    assert perfect["motion_err"] < 0.05 < measures.result()["measures"]["motion_err"]


def test_a_failed_episode_counts_as_failed(tmp_path):
    _, episodes, _ = run("PPO", tmp_path, lengths=(5,))
    _, _, policy = make("PPO", tmp_path, 1, SPINKICK)
    measures = Episodes(policy, 50.0)
    measures.add(episodes[0])
    measures.add([*episodes[0][:-1], episodes[0][-1]._replace(end=FAILED)])
    result = measures.result()
    assert result["measures"]["survival"] == result["measures"]["success_rate"] == 0.5


@pytest.mark.parametrize(("near", "changed", "failed", "expected"), [
    ([0, 1, 0, 0, 0], [0, 0, 0, 1, 0], False, (1, 1)),  # reached, changed; the second is cut off
    ([0, 0, 0, 1, 0], [0, 0, 0, 1, 0], False, (0, 1)),  # near the new one only
    ([0, 1, 0, 0, 0], [0, 0, 0, 1, 0], True, (1, 2)),  # fell on the way to the second
    ([0, 1, 0], [0, 0, 0], False, (0, 0)),  # neither changed nor fell: no sample
])
def test_targets_reached(near, changed, failed, expected):
    assert _targets_reached(torch.tensor(near) > 0, torch.tensor(changed) > 0, failed) == expected

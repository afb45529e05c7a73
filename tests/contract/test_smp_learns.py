"""A motion prior learns its clips, and its reward draws a policy to what it knows."""

import pytest
import torch
import yaml

from mimickit.learning.config import TrainOptions
from mimickit.learning.diffusion import MotionPrior, load_prior_config
from mimickit.learning.trainer import train
from mimickit.prior import PriorTraining
from mimickit.util.checkpoint import find_latest, load_checkpoint, save_model
from mimickit.util.distributed import seed_process
from mimickit.util.logging import read_log
from tests.contract.test_training import NoWaiting
from tests.contract.toy_style_env import ALONE, build, learn

SMALL = {"estimate_mode": "sample", "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32,
         "batch_size": 64, "num_samples_stat": 2000, "lr": 1e-3, "model_ema": False}


def distance(samples, data):
    """Chamfer distance per number: how far samples are from their nearest datum, and data from their nearest sample.
    Who makes things up pays for the first, who leaves something out for the second."""
    apart = torch.cdist(samples, data)
    return (apart.amin(1).mean() + apart.amin(0).mean()).item() / samples.shape[1]**0.5


def test_a_prior_is_closer_to_its_clips_than_a_gaussian(tmp_path):
    """The Gaussian has mean and covariance of the same windows. Seen: 0.01 between two draws of data, 1.08 for the
    Gaussian, 0.47 for the prior after 300 iterations and 0.33 after 900."""
    training = PriorTraining(load_prior_config("data/priors/humanoid_spinkick.yaml", SMALL), "cpu", 0)
    prior = training.prior

    def windows(count):
        return prior.obs_normalizer.normalize(training.data.draw(count))

    fitted, held = windows(1024), windows(512)
    gaussian = torch.distributions.MultivariateNormal(
        fitted.mean(0).double(), torch.cov(fitted.T.double()) + 1e-4 * torch.eye(prior.size, dtype=torch.float64))
    gaussian_distance = distance(gaussian.sample((512,)).float(), held)
    assert distance(windows(512), held) < 0.1 * gaussian_distance
    assert distance(prior.obs_normalizer.normalize(prior.sample(512)), held) > 1.5 * gaussian_distance  # untrained
    training.run(300)
    found = distance(prior.obs_normalizer.normalize(prior.sample(512)), held)
    assert found < 0.6 * gaussian_distance, (found, gaussian_distance)


@pytest.fixture(scope="module")
def prior_keys(tmp_path_factory):
    """The prior of points around (1.2, -0.8), the centre of the toy."""
    folder = tmp_path_factory.mktemp("prior")
    (folder / "env.yaml").write_text("num_disc_obs_steps: 1")
    data = {"base": "data/priors/base.yaml", **SMALL, "attention_head_dim": 8, "num_iterations": 400,
            "estimate_mode": "epsilon", "env_config": str(folder / "env.yaml"), "motion_file": "none"}
    (folder / "prior.yaml").write_text(yaml.safe_dump(data))
    seed_process(3, 0)
    prior = MotionPrior(load_prior_config(folder / "prior.yaml"), 1, 2)

    def points(count):
        return torch.tensor([1.2, -0.8]) + 0.3 * torch.randn(count, 2)

    prior.obs_normalizer.fill(points(4096), 0.0)
    optimizer = torch.optim.AdamW(prior.dmodel.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        prior.loss(prior.obs_normalizer.normalize(points(256)), "l2").backward()
        optimizer.step()
    save_model(folder / "prior.pt", prior.state_dict())
    return {"smp_prior_cfg": str(folder / "prior.yaml"), "smp_prior_model": str(folder / "prior.pt")}


def test_the_prior_of_points_generates_such_points(prior_keys):
    prior = MotionPrior(load_prior_config(prior_keys["smp_prior_cfg"]), 1, 2)
    prior.load(prior_keys["smp_prior_model"])
    seed_process(1, 0)
    points = prior.sample(4000, "ddim")
    torch.testing.assert_close(points.mean(0), torch.tensor([1.2, -0.8]), atol=0.1, rtol=0)
    torch.testing.assert_close(points.std(0), torch.tensor([0.3, 0.3]), atol=0.1, rtol=0)


def test_smp_is_drawn_to_what_the_prior_knows(tmp_path, prior_keys):
    before, after = learn(tmp_path, "SMP", **prior_keys)
    assert before.measures["miss"] > 1.8 and after.measures["miss"] < 0.9, after.measures
    assert after.measures["test_smp_reward"] > 2.0 * before.measures["test_smp_reward"]
    columns, rows = read_log(tmp_path / "log.txt")
    assert columns[9:] == [
        "Critic_Loss", "Actor_Loss", "Clip_Frac", "Imp_Ratio", "Action_Bound_Loss", "Adv_Mean", "Adv_Std",
        "Smp_Reward_Mean", "Smp_Reward_Std", "Sds_Loss_Mean", "Sds_Loss_Std", "Task_Reward_Mean", "Test_Smp_Reward",
        "Test_Sds_Loss", "Miss", "Obs_Norm_Mean", "Obs_Norm_Std", "Exp_Prob",
    ]
    assert len(rows[-1]) == len(columns)


def test_without_its_reward_it_is_not(tmp_path, prior_keys):
    _, after = learn(tmp_path, "SMP", **prior_keys, smp_reward_weight=0.0)
    assert after.measures["miss"] > 1.2


def test_a_continued_run_equals_an_uninterrupted_one(tmp_path, prior_keys):
    def go(name, iters, **options):
        env, agent = build("SMP", num_envs=16, **prior_keys, iters_per_output=2, test_episodes=16)
        train(env, agent, ALONE, TrainOptions(tmp_path / name, max_iters=iters, **options))
        return load_checkpoint(find_latest(tmp_path / name), ALONE).shared["agent"]

    whole = go("whole", 4)
    go("parts", 2)
    parts = go("parts", 2, resume=tmp_path / "parts")
    assert {"_prior_model.dmodel.proj_in.weight", "_sds_normalizer.mean_abs64"} <= whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_nothing_waits_for_the_device(prior_keys):
    env, agent = build("SMP", num_envs=16, **prior_keys)
    agent.start_iteration(0)  # looks whether there are weights, once
    with NoWaiting():
        agent.start_iteration(0)
        for t in range(agent.config.steps_per_iter):
            agent.act(t)
            env.step(agent.action)
            agent.observe(t)
        agent.update(0)
        agent.start_test()
        agent.observe_test()

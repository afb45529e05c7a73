"""The score-matching reward against hand-computed numbers, and what it keeps."""

import pytest
import torch

from mimickit.learning.diffusion import MotionPrior, load_prior_config, score_matching_reward
from mimickit.learning.methods import build_agent
from mimickit.learning.normalizer import MeanAbsNormalizer
from mimickit.learning.smp import ScoreMatching
from mimickit.util.checkpoint import save_model
from mimickit.util.distributed import Distributed
from mimickit.util.failures import AssetMissingError, UserError
from tests.unit.method_case import StillEnv, config

ALONE = Distributed.single()
ERRORS = torch.tensor([[0.4, 0.45, 0.5], [0.8, 0.9, 1.0], [0.08, 0.09, 0.1]])


class Starts:
    """What a learner does with an environment's start states."""

    def __init__(self):
        self.opened, self.added = None, []

    def open(self, capacity, frames):
        self.opened = capacity, frames

    def add(self, windows):
        self.added.append(len(windows))


class SeeingTooMuch:
    """A prior whose errors are given."""

    def __init__(self, errors):
        self._errors = errors
        self.obs_normalizer = self

    def normalize(self, windows):
        return windows

    def denoising_errors(self, windows, steps):
        return self._errors[windows[:, 0].long()]


def prior_file(folder, **changes):
    """A prior's file for windows of two frames with one number each."""
    (folder / "env.yaml").write_text("num_disc_obs_steps: 2")
    keys = {"T": 50, "loss_type": "l1", "estimate_mode": "epsilon", "noise_schedule_mode": "squaredcos_cap_v2",
            "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 4, "num_iterations": 1, "control_freq": 30,
            "env_config": folder / "env.yaml", "motion_file": folder / "clip.pkl", **changes}
    (folder / "prior.yaml").write_text("\n".join(f"{key}: {value}" for key, value in keys.items()))
    return folder / "prior.yaml"


def smp(folder, num_envs=3, env=None, weights=True, **changes):
    """A reward source with an untrained prior, and its environment."""
    file = prior_file(folder)
    if weights:
        torch.manual_seed(4)
        prior = MotionPrior(load_prior_config(file), 2, 1)
        prior.obs_normalizer.fill(torch.randn(64, 1), 0.2)
        save_model(folder / "prior.pt", prior.state_dict())
    env = env or StillEnv(num_envs)
    keys = {"smp_prior_cfg": str(file), "smp_prior_model": str(folder / "prior.pt"), "steps_per_iter": 1,
            "actor_batch_size": 1, "critic_batch_size": 1, **changes}
    return env, ScoreMatching(env, config("SMP", **keys), ALONE)


def test_reward_by_hand():
    norm = MeanAbsNormalizer(3, "cpu")
    norm.record(torch.tensor([[0.8, 0.9, 1.0]]))
    norm.update(ALONE)
    found = score_matching_reward(norm.normalize(ERRORS), 1.0, 6.0)
    torch.testing.assert_close(found, torch.tensor([0.0497871, 0.0024788, 0.5488116]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_source(tmp_path, chunk):
    """In the first iteration errors count as they are; their usual size counts from the next."""
    env, source = smp(tmp_path, smp_eval_batch_size=chunk, smp_reward_weight=0.5, smp_reward_scale=2.0)
    source.prior = SeeingTooMuch(ERRORS)
    env.info["disc_obs"][:, 0] = torch.arange(3.0)
    usual = ERRORS.mean(0)
    for scale in (torch.ones(3), usual, usual):
        source._is_ready = True
        source.start_iteration(0)
        source.record(0)
        reward, metrics = source.reward()
        expected = 0.5 * 2.0 * torch.exp(-6.0 * (ERRORS / scale).mean(-1))
        torch.testing.assert_close(reward, expected.unsqueeze(0))
        assert metrics["Sds_Loss_Mean"].value.item() == pytest.approx(0.48)
        assert metrics["Sds_Loss_Std"].value.item() == pytest.approx(0.4058325, rel=1e-5)
        assert metrics["Smp_Reward_Mean"].value.item() == pytest.approx(2.0 * expected.mean().item(), rel=1e-5)
        source.finish_iteration(0)
        torch.testing.assert_close(source.norm.mean_abs, usual)


def test_the_usual_size_freezes(tmp_path):
    _, source = smp(tmp_path, sds_normalizer_samples=3)
    for samples in (0, 3, 6):
        source.start_iteration(samples)
        source.record(0)
        source.reward()
        source.finish_iteration(samples)
        assert source.norm.count.item() == 3


def test_start_states_are_generated_at_first_and_then_some(tmp_path):
    env = StillEnv(3)
    env.starts = Starts()
    _, source = smp(tmp_path, env=env, enable_gsi=True, gsi_buffer_size=20, gsi_regen_num_motions=6, gsi_batch_size=4,
                    gsi_iters=3)
    assert env.starts.opened == (20, 2)
    for iteration in range(5):
        source.start_iteration(3 * iteration)
        source.finish_iteration(3 * iteration)
        if iteration == 0:
            assert env.starts.added == [4] * 5 + [4, 2]
    assert env.starts.added == [4] * 5 + 2 * [4, 2]


def test_an_environment_that_cannot_start_from_them(tmp_path):
    env = StillEnv(3)
    env.starts = None
    with pytest.raises(UserError, match="enable_gsi: episodes of this environment cannot start"):
        smp(tmp_path, env=env, enable_gsi=True)


def test_the_model_file_holds_the_prior(tmp_path):
    env, _ = smp(tmp_path)
    keys = {"smp_prior_cfg": str(tmp_path / "prior.yaml"), "smp_prior_model": str(tmp_path / "prior.pt")}
    agent = build_agent(env, config("SMP", **keys), ALONE)
    tensors = agent.model_tensors()
    assert {"_prior_model.dmodel.proj_in.weight", "_prior_model.obs_normalizer._mean", "_sds_normalizer._count",
            "_sds_normalizer._mean_abs", "_model._critic_out.weight", "_obs_norm._mean"} <= set(tensors)
    prior_names = {name for name in tensors if name.startswith("_prior_model.")}
    assert len(prior_names) == len(MotionPrior(load_prior_config(tmp_path / "prior.yaml"), 2, 1).state_dict())
    learned = sum(p.requires_grad for p in agent.parameters())
    assert learned == sum(p.requires_grad for p in agent._model.parameters())
    save_model(tmp_path / "model.pt", tensors)

    (tmp_path / "prior.pt").unlink()
    other = build_agent(env, config("SMP", **keys), ALONE)
    with pytest.raises(AssetMissingError, match=r"prior\.pt: no such prior; mimickit prior"):
        other.start_iteration(0)
    other.load_model(tmp_path / "model.pt")  # testing a policy needs no other file
    other.start_iteration(0)
    for name, tensor in other.model_tensors().items():
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize(("changes", "message"), [
    ({"diffusion_steps": [22, 50]}, r"diffusion_steps \[50\]: the prior of .* has steps 0 to 49"),
    ({"diffusion_steps": []}, "diffusion_steps"),
    ({"enable_gsi": True, "gsi_batch_size": 2000}, "gsi_buffer_size = 4096, gsi_regen_num_motions = 1024, gsi_batch"),
])
def test_mistakes(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        smp(tmp_path, **changes)


def test_windows_of_another_size(tmp_path):
    with pytest.raises(UserError, match="num_disc_obs_steps 2 does not fit windows of 3 numbers"):
        smp(tmp_path, env=StillEnv(3, disc_size=3))

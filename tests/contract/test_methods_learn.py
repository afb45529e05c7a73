"""Every method learns what it is for on a toy, and does not where it cannot; a continued run stays exact."""

import pytest
import torch

from mimickit.learning.config import TrainOptions, parse_agent_config
from mimickit.learning.methods import build_agent
from mimickit.learning.metrics import EpisodeTracker
from mimickit.learning.trainer import roll_out, train
from mimickit.util.checkpoint import find_latest, load_checkpoint
from mimickit.util.distributed import seed_process
from mimickit.util.logging import read_log
from tests.contract.test_ppo_learns import BY_CHANCE
from tests.contract.test_training import NoWaiting
from tests.contract.toy_style_env import ALONE, StyleEnv, agent_config, build, learn
from tests.two_processes import in_two_processes

AROUND_ORIGIN = {"centre": (0.0, 0.0), "spread": 0.8}
METHODS = ("AWR", "AMP", "ADD", "ASE")


def test_awr_improves(tmp_path):
    before, after = learn(tmp_path, "AWR", iterations=40)
    assert before.test_return < 6.0 and after.test_return > 14.0
    columns, _ = read_log(tmp_path / "log.txt")
    assert columns[9:17] == ["Critic_Loss", "Actor_Loss", "Action_Bound_Loss", "Adv_Mean", "Adv_Std", "A_Weight_Mean",
                             "A_Weight_Min", "A_Weight_Max"]


def test_awr_with_shuffled_rewards_does_not(tmp_path):
    _, after = learn(tmp_path, "AWR", iterations=40, env_keys={"shuffle": True})
    assert after.test_return < BY_CHANCE  # with eight seeds 3.7 to 7.2


def test_amp_is_drawn_to_the_demonstrations(tmp_path):
    before, after = learn(tmp_path, "AMP")
    assert before.measures["miss"] > 1.8 and after.measures["miss"] < 0.9
    assert after.measures["test_disc_agent_acc"] < 0.8  # hard to tell by now
    columns, rows = read_log(tmp_path / "log.txt")
    assert columns[9:] == [
        "Critic_Loss", "Actor_Loss", "Clip_Frac", "Imp_Ratio", "Action_Bound_Loss", "Disc_Loss", "Disc_Grad_Penalty",
        "Disc_Agent_Acc", "Disc_Demo_Acc", "Disc_Agent_Logit", "Disc_Demo_Logit", "Disc_Logit_Loss", "Adv_Mean",
        "Adv_Std", "Disc_Reward_Mean", "Disc_Reward_Std", "Task_Reward_Mean", "Test_Disc_Reward", "Test_Disc_Agent_Acc",
        "Test_Disc_Demo_Acc", "Test_Disc_Agent_Logit", "Test_Disc_Demo_Logit", "Miss", "Obs_Norm_Mean", "Obs_Norm_Std",
        "Exp_Prob",
    ]
    assert len(rows[-1]) == len(columns)


def test_without_the_style_reward_the_discriminator_wins(tmp_path):
    _, after = learn(tmp_path, "AMP", disc_reward_weight=0.0)
    assert after.measures["miss"] > 1.2
    assert after.measures["test_disc_agent_acc"] > 0.9 and after.measures["test_disc_demo_acc"] > 0.9


def test_add_follows_the_reference(tmp_path):
    before, after = learn(tmp_path, "ADD")
    assert before.measures["miss"] > 1.2 and after.measures["miss"] < 0.5
    assert after.measures["test_disc_pos_acc"] == 1.0


def test_add_without_its_reward_does_not(tmp_path):
    _, after = learn(tmp_path, "ADD", disc_reward_weight=0.0)
    assert after.measures["miss"] > 0.65


def test_ase_gives_skills_that_the_encoder_tells_apart(tmp_path):
    """Chance, for a latent in the plane: mean of max(0, cos) over the circle, 1 / pi."""
    before, after = learn(tmp_path, "ASE", env_keys=AROUND_ORIGIN)
    assert before.measures["test_enc_reward"] == pytest.approx(1 / torch.pi, abs=0.06)
    assert after.measures["test_enc_reward"] > 0.55
    assert after.measures["miss"] < 0.65 * before.measures["miss"]  # and stays among the demonstrations
    columns, _ = read_log(tmp_path / "log.txt")
    assert {"Diversity_Loss", "Enc_Loss", "Enc_Reward_Mean", "Enc_Reward_Std", "Disc_Reward_Mean"} <= set(columns)
    assert columns.index("Disc_Reward_Mean") < columns.index("Enc_Reward_Mean") < columns.index("Adv_Mean")


def test_ase_without_its_reward_does_not(tmp_path):
    _, after = learn(tmp_path, "ASE", env_keys=AROUND_ORIGIN, enc_reward_weight=0.0, diversity_weight=0.0)
    assert after.measures["test_enc_reward"] < 0.45


@pytest.mark.parametrize("method", ["AMP", "ADD", "ASE"])
def test_the_task_counts_by_its_weight(tmp_path, method):
    _, after = learn(tmp_path, method, iterations=40, task_reward_weight=1.0, disc_reward_weight=0.0,
                     **({"enc_reward_weight": 0.0} if method == "ASE" else {}))
    assert after.test_return > 13.0


@pytest.mark.parametrize("method", METHODS)
def test_continued_run_equals_an_uninterrupted_one(tmp_path, method):
    keys = {"disc_buffer_size": 700, "disc_replay_samples": 50} if method != "AWR" else {}

    def go(name, iters, **options):
        env, agent = build(method, num_envs=16, iters_per_output=2, test_episodes=16, **keys)
        train(env, agent, ALONE, TrainOptions(tmp_path / name, max_iters=iters, **options))
        found = load_checkpoint(find_latest(tmp_path / name), ALONE)
        own = {f"{part}.{name}": x for part, state in found.local["agent"].items() for name, x in state.items()}
        return {**found.shared["agent"], **own, **found.local["env"]}

    whole = go("whole", 6)
    go("parts", 3)
    parts = go("parts", 3, resume=tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    if method != "AWR":
        assert {"disc_replay.data", "disc_replay.received", "disc_optimizer.moment1", "_disc_obs_norm.pending",
                "_model._disc_logits.weight"} <= whole.keys()
        assert whole["disc_replay.received"] == 256 * 3 + 50 * 3
    if method == "ASE":
        assert {"latents.values", "latents.expiry", "enc_optimizer.moment2"} <= whole.keys()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_device(method):
    env, agent = build(method, num_envs=16)
    tracker = EpisodeTracker(16, "cpu")
    with NoWaiting():
        agent.start_iteration(0)
        roll_out(env, agent, agent.config.steps_per_iter, lambda: tracker.update(env.reward, env.done))
        metrics = agent.update(0)
        agent.start_test()
        agent.act_test()
        agent.observe_test()
        sums = [tensor for pair in agent.metric_sums().values() for tensor in pair]
    assert all(torch.isfinite(value).all() for value in (*(metric.value for metric in metrics.values()), *sums))


@pytest.mark.parametrize("method", ["AMP", "ADD", "ASE"])
def test_normalisers_freeze_and_the_model_file_carries_everything(tmp_path, method):
    env, agent = build(method, num_envs=16, normalizer_samples=256)
    train(env, agent, ALONE, TrainOptions(tmp_path, max_iters=3))
    model = agent.model_tensors()
    assert model["_disc_obs_norm._count"].item() == 256 * (1 if method == "ADD" else 2)
    _, other = build(method, num_envs=16, seed=5)
    other.load_model(tmp_path / "model.pt")
    for name, tensor in other.model_tensors().items():
        assert torch.equal(tensor, model[name]), name


def test_two_processes_stay_equal(tmp_path):
    """ASE has everything the others have; each process has its own replay and latents."""
    in_two_processes(_train_one_rank, tmp_path)
    columns, rows = read_log(tmp_path / "log.txt")
    assert rows[-1][columns.index("Samples")] == str(4 * 2 * 16 * 16)


def _train_one_rank(dist, folder):
    seed_process(0, dist.rank)
    env = StyleEnv(16)
    agent = build_agent(env, parse_agent_config(agent_config("ASE")), dist)
    train(env, agent, dist, TrainOptions(folder, max_iters=4))
    for name, tensor in agent.state_dict().items():
        root = tensor.clone()
        dist.broadcast_([root])
        assert torch.equal(root, tensor), name
    replays = dist.all_gather_object(agent.process_state()["disc_replay"]["data"].tolist())
    assert replays[0] != replays[1]

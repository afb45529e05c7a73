"""Collectives with one and with two processes."""

import random
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

from mimickit.anim.motion import LoopMode
from mimickit.config import build
from mimickit.envs.base import EnvMode
from mimickit.envs.similarity import MotionSimilarity
from mimickit.envs.terms import CharState
from mimickit.learning import rl_math
from mimickit.learning.agent import Agent
from mimickit.learning.config import DummyConfig, OptimizerConfig
from mimickit.learning.evaluation import mean_values, run_test
from mimickit.learning.metrics import EpisodeRecord, Metric, reduce_metrics
from mimickit.learning.normalizer import MeanAbsNormalizer, MeanStdNormalizer
from mimickit.learning.optim import BatchLoss, FlatOptimizer, NetworkUpdate, interleave
from mimickit.learning.rollout import MinibatchSampler
from mimickit.util.checkpoint import load_checkpoint, resolve_checkpoint
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.failures import MimicKitError, UserError
from tests.saving import write_checkpoint
from tests.two_processes import VARIABLES, in_two_processes
from tests.unit.env_case import make_env, write_clip


def test_one_process_needs_no_group(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    dist = Distributed.from_env("cpu")
    x = torch.tensor([1.0, 2.0])
    for operation in (dist.sum_, dist.min_, dist.max_):
        assert operation(x) is x
    dist.broadcast_([x])
    dist.barrier()
    assert torch.equal(x, torch.tensor([1.0, 2.0]))
    assert dist.all_gather_object("a") == ["a"]
    assert dist.broadcast_object("a") == "a"
    assert dist.is_root
    dist.shutdown()


def test_incomplete_variables_are_named(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"RANK.*torchrun"):
        Distributed.from_env("cpu")


def test_who_waits_for_the_others_tells_that_it_lives(monkeypatch):
    """Of two processes that torchrun has started one never comes."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    values = (0, 2, 0, "127.0.0.1", store.port)
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    beats = []
    with pytest.raises(torch.distributed.DistStoreError, match=r"only 1 of 2 processes came within 0\.5 s"):
        Distributed.from_env("cpu", timeout_s=0.5, waiting=lambda: beats.append(1))
    assert len(beats) > 1


def test_devices_of_two_kinds_are_refused():
    with pytest.raises(UserError, match="one kind"):
        Distributed.from_env(["cpu", "cuda:0"])


def test_seeds_differ_by_rank_and_repeat():
    def draw(rank):
        assert seed_process(2**33, rank) == 2**33 + 41 * rank
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    first = draw(0)
    assert draw(0) == first
    assert all(a != b for a, b in zip(draw(1), first, strict=True))


def reentrant(dist):
    assert dist.sum_(torch.tensor([dist.rank + 1])).item() == 3


def worked_numbers(dist):
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0]][dist.rank])

    mean, std = rl_math.mean_and_std(dist.sum_(rl_math.masked_moments(x, torch.ones_like(x))))
    assert mean.item() == pytest.approx(6.666667, rel=1e-6)
    assert std.item() == pytest.approx(7.257180, rel=1e-6)

    norm = MeanStdNormalizer(1, "cpu")
    norm.record(x.unsqueeze(1))
    norm.update(dist)
    assert (norm.count.item(), norm.mean.item()) == (6, pytest.approx(6.666667, rel=1e-6))
    assert norm.std.item() == pytest.approx(6.624869, rel=1e-6)

    difference = MeanAbsNormalizer(1, "cpu")
    difference.record(-x.unsqueeze(1))
    difference.update(dist)
    assert (difference.count.item(), difference.mean_abs.item()) == (6, pytest.approx(6.666667, rel=1e-6))

    assert dist.sum_(torch.tensor([100 + dist.rank])).item() == 201
    assert dist.min_(torch.tensor([5 + dist.rank])).item() == 5
    assert dist.max_(torch.tensor([5 + dist.rank])).item() == 6
    assert dist.all_gather_object(dist.rank) == [0, 1]
    assert dist.broadcast_object(f"from {dist.rank}") == "from 0"

    t = torch.tensor
    found = reduce_metrics({
        "return": Metric(t([5.0, 0.0][dist.rank]), "mean", t([2.0, 0.0][dist.rank])),  # nobody finished on rank 1
        "weighted": Metric(t([1.0, 4.0][dist.rank]), "mean", t([1.0, 3.0][dist.rank])),
        "plain": Metric(t([1.0, 4.0][dist.rank])),
        "episodes": Metric(t([1, 2][dist.rank]), "sum"),
        "min": Metric(t([1.0, 4.0][dist.rank]), "min"),
        "max": Metric(t([1.0, 4.0][dist.rank]), "max"),
    }, dist)
    assert found == {"return": 5.0, "weighted": 3.25, "plain": 2.5, "episodes": 3.0, "min": 1.0, "max": 4.0}


def optimizer(dist, start):
    p = nn.Parameter(torch.tensor([start]))
    return p, FlatOptimizer({"p": p}, build(OptimizerConfig, {"type": "SGD", "learning_rate": 0.1}, "test"), dist)


def one_step(dist):
    p, flat = optimizer(dist, [1.0, 2.0][dist.rank])
    assert p.item() == 1.0  # broadcast
    flat.set_gradient([1.0, 3.0][dist.rank] * p.sum())
    flat.exchange().wait()
    flat.step()
    assert p.item() == pytest.approx(0.8)


def weighted_step(dist):
    p, flat = optimizer(dist, 1.0)
    flat.set_gradient([1.0, 3.0][dist.rank] * p.sum(), weight=torch.tensor([3.0, 1.0][dist.rank]))
    flat.exchange().wait()
    flat.step()
    assert p.item() == pytest.approx(1.0 - 0.1 * 1.5)
    flat.set_gradient(5.0 * p.sum(), weight=0.0)  # nothing counted anywhere: only momentum moves
    flat.exchange().wait()
    flat.step()
    assert p.item() == pytest.approx(0.85 - 0.1 * 0.9 * 1.5)


def deviating_parameters(dist):
    p, flat = optimizer(dist, 1.0)
    flat.check_equal()
    with torch.no_grad():
        p.fill_(float("nan"))
    flat.check_equal()  # told as what it is, elsewhere
    with torch.no_grad():
        p.fill_(1.0)
    if dist.rank == 1:
        with torch.no_grad():
            p += 1e-3
    with pytest.raises(MimicKitError, match=r"process 1: p"):
        flat.check_equal()


def checkpoint_of_two(dist, folder):
    shared = {"a": torch.tensor([1.0])} if dist.is_root else None
    path = write_checkpoint(folder, 4, shared, {"own": torch.tensor([dist.rank])}, dist=dist)
    assert resolve_checkpoint(folder, dist) == path
    found = load_checkpoint(path, dist)
    assert found.local["own"].item() == dist.rank
    assert found.shared["a"].item() == 1.0
    assert sorted(found.manifest["files"]) == ["rank_0.pt", "rank_1.pt", "shared.pt"]


def largest_error(dist, clip):
    """An engine that is right on process 0 and 1 m off on process 1."""
    env = make_env("view_motion", num_envs=2, motion_file=clip)
    right = env.engine._kinematics

    def kinematics():
        right()
        env.engine.body_pos[1, 7, 2] += dist.rank

    env.engine._kinematics = kinematics
    found = run_test(env, Agent(env, DummyConfig(), dist), dist, 4)
    assert found.complete and found.measures["pose_err"] == pytest.approx(1.0, abs=1e-5)


def similarity(dist, clip):
    """Six characters doing different things, three a process: the same figures as of all six in one."""
    env = make_env("amp", num_envs=1, motion_file=clip)
    windows = env.terms.memory["history"].windows
    every = windows.ending(torch.zeros(6, dtype=torch.int64), torch.tensor([0.3, 0.4, 0.45, 0.8, 0.9, 1.0]))

    def figures(who, among):
        count = who.stop - who.start
        history = SimpleNamespace(num_steps=windows.num_steps, frames=lambda: CharState(*(x[who] for x in every)))
        metric = MotionSimilarity(history, windows, count, env.dt)
        env.terms.metrics = {"similarity": metric}
        env.set_mode(EnvMode.TEST)
        yes, flags = torch.ones(count, dtype=torch.bool), torch.full((count,), 3, dtype=torch.int32)
        record = EpisodeRecord(count, "cpu", per_env=1, metrics=env.metric_sums())
        metric.measure(SimpleNamespace(time=torch.full((count,), 1.0)), flags, yes)
        record.update(torch.ones(count), flags)
        found = [mean_values(record, env, among) for _ in range(2)]
        assert found[0] == found[1]  # to read them changes nothing
        return found[0]

    whole = figures(slice(0, 6), Distributed.single("cpu"))
    own = figures(slice(3 * dist.rank, 3 * dist.rank + 3), Distributed.single("cpu"))
    together = figures(slice(3 * dist.rank, 3 * dist.rank + 3), dist)
    assert own["coverage_err"] > 1.5 * whole["coverage_err"] and own["motion_dist"] > 1.5 * whole["motion_dist"]
    for name in ("motion_err", "coverage_err", "motion_dist", "episodes"):
        assert together[name] == pytest.approx(whole[name], rel=1e-4), name
    assert dist.all_gather_object(together) == [together, together]


def learning(dist, in_turns):
    """Two networks on data that differs between processes: their parameters, and who differentiated when."""
    seed_process(1, dist.rank)
    data, order, learners, parameters = torch.randn(12, 3), [], [], []
    for name, size in (("short", 4), ("long", 12)):
        net = nn.Linear(3, size)

        def loss(index, net=net, name=name):
            order.append(name)
            value = net(data[index]).square().mean()
            return BatchLoss(value, float(len(index)), ("Loss",), value.detach().view(1))

        rate = build(OptimizerConfig, {"type": "Adam", "learning_rate": 0.01}, "test")
        flat = FlatOptimizer(dict(net.named_parameters()), rate, dist)
        learners.append(NetworkUpdate(loss, flat, 12 // size, size, dist))
        parameters += net.parameters()
    sampler = MinibatchSampler(12, "cpu")
    if in_turns:
        interleave(learner.steps(sampler) for learner in learners)
    else:
        for learner in learners:
            interleave([learner.steps(sampler)])
    return [p.detach() for p in parameters], order, [learner.metrics()["Loss"].value for learner in learners]


def networks_take_turns(dist):
    parameters, order, losses = learning(dist, in_turns=True)
    assert order == ["short", "long"] * 4 + ["long"] * 8
    expected, one_by_one, expected_losses = learning(dist, in_turns=False)
    assert one_by_one == ["short"] * 4 + ["long"] * 12
    assert all(map(torch.equal, parameters, expected)) and losses == expected_losses
    _, alone, _ = learning(Distributed.single(), in_turns=True)
    assert alone == one_by_one  # nothing to wait for


def all_checks(dist, folder, clip):
    worked_numbers(dist)
    one_step(dist)
    weighted_step(dist)
    networks_take_turns(dist)
    deviating_parameters(dist)
    checkpoint_of_two(dist, folder)
    largest_error(dist, clip)
    similarity(dist, clip)


def test_two_processes(tmp_path):
    in_two_processes(all_checks, tmp_path, write_clip(tmp_path / "clip.pkl", loop=LoopMode.CLAMP))


def test_start_and_stop_twice_in_one_process():
    in_two_processes(reentrant, times=2)

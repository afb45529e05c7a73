"""``mimickit prior``: train a motion prior on clips, and check that one fits the environment it is to score.

A prior's folder::

    model.pt                names and shapes are MimicKit's
    diffusion_config.yaml   what it was trained with; env_config.yaml: whose observation it knows
    prior.json              digest of clips and settings, iterations, last loss, seconds
    log.txt                 Iteration, Loss
    samples/motion_000.pkl  clips that it generates, to look at
    training.pt             while it is not finished: everything to continue exactly

A finished prior of the same clips and settings is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mimickit.anim.motion import LoopMode, MotionClip, save_motion
from mimickit.anim.motion_lib import list_motions
from mimickit.config import load_layered, merge
from mimickit.engines.engine_config import make_engine_config
from mimickit.envs.amp import PriorConfig as StyleConfig
from mimickit.envs.amp import window_observation
from mimickit.envs.disc_obs import ClipWindows
from mimickit.envs.env_builder import check_files, load_env_config
from mimickit.envs.generated import decode_windows
from mimickit.envs.scene import EnvConfig, Scene, Setup
from mimickit.learning.config import OptimizerConfig, SMPConfig
from mimickit.learning.diffusion import MotionPrior, PriorConfig, load_prior_config
from mimickit.learning.optim import FlatOptimizer
from mimickit.util.checkpoint import fill_tensors, read_model, save_model
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.failures import UserError
from mimickit.util.files import read_json, write_json, write_text
from mimickit.util.graphs import Graphed
from mimickit.util.logging import duration, format_row
from mimickit.util.manifest import sha256
from mimickit.util.rotations import quat_to_exp_map

WEIGHT_DECAY = 0.01
NUM_SAMPLES = 16  # generated clips in a prior's folder
UNUSED = ("model_name", "device", "master_port", "output_iter")  # of a prior's file: they change nothing of it
SEEN_BY_PRIOR = ("global_obs", "root_height_obs", "enable_tar_obs", "num_disc_obs_steps", "disc_dof_vel_obs",
                 "key_bodies")  # keys of an environment that say what a window is


@dataclass(frozen=True)
class WindowData:
    """Windows of clips, as a prior sees them."""

    draw: Callable[[int], Tensor]  # number of windows -> [B, S C], not normalized
    frames: int  # S
    channels: int  # C
    scene: Scene


def window_data(config: PriorConfig, device: torch.device | str) -> WindowData:
    """The clips of a prior's file, seen as its environment sees them.

    Raises:
        AssetMissingError, UserError: a file is missing or wrong; the environment has no windows.
    """
    env = prior_env(config)
    check_files(env)
    engine = make_engine_config({"engine_name": "newton", "control_mode": "pos", "control_freq": config.control_freq,
                                 "sim_freq": config.control_freq, "env_spacing": 0.0}, "prior")
    scene = Scene(env, Setup(engine, 1, torch.device(device), _no_engine))
    windows, observe = ClipWindows(scene, env.num_disc_obs_steps), window_observation(env, scene)

    def draw(count: int) -> Tensor:
        return observe(windows.sample(count))

    return WindowData(draw, env.num_disc_obs_steps, draw(1).shape[-1] // env.num_disc_obs_steps, scene)


def prior_env(config: PriorConfig) -> StyleConfig:
    """The environment of a prior's file, with the prior's clips.

    Raises:
        AssetMissingError, UserError: its file is missing or wrong, or it is of an environment without windows.
    """
    env = load_env_config(config.env_config, {"motion_file": str(config.motion_file)})
    if not isinstance(env, StyleConfig):
        raise UserError(f"{config.env_config}: env_name {env.env_name} has no windows for a prior; amp, smp, ase and "
                        "the tasks have")
    return env


def _no_engine(*args: Any) -> Any:
    raise AssertionError("a prior needs no physics")


def check_prior(agent: SMPConfig, env: EnvConfig, control_freq: int) -> None:
    """Make sure that the prior of an agent knows the windows of an environment.

    Raises:
        AssetMissingError, UserError: naming what is missing, or in what they differ.
    """
    config = load_prior_config(agent.smp_prior_cfg)
    known = prior_env(config)
    own = {key: getattr(env, key, None) for key in SEEN_BY_PRIOR} | {"control_freq": control_freq}
    seen = {key: getattr(known, key) for key in SEEN_BY_PRIOR} | {"control_freq": config.control_freq}
    if wrong := [f"{key} {own[key]} (the prior's: {seen[key]})" for key in own if own[key] != seen[key]]:
        raise UserError(f"{env.source} and the prior of {agent.smp_prior_cfg} do not see the same: {', '.join(wrong)}")
    if agent.enable_gsi and not (env.root_height_obs and not env.enable_tar_obs and not env.pose_termination):
        raise UserError(f"{env.source}: generated start states (enable_gsi) need root_height_obs true, enable_tar_obs "
                        "and pose_termination false")


# --- training ---------------------------------------------------------------------------------------------------------


def digest(config: PriorConfig) -> str:
    """Of everything that decides what a prior learns: its settings, what it sees, clips and their weights."""
    env = prior_env(config)
    clips, weights = list_motions(config.motion_file)
    told = {
        "prior": config.model_dump(mode="json", exclude={*UNUSED, "env_config", "motion_file"}),
        "env": {key: getattr(env, key) for key in SEEN_BY_PRIOR},
        "character": sha256(env.char_file),
        "clips": [[sha256(clip), weight] for clip, weight in zip(clips, weights, strict=True)],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class PriorTraining:
    """A prior being trained. Its state is that of the modules, ``iteration`` and torch's generator.

    Args:
        seed: of everything random.
    """

    def __init__(self, config: PriorConfig, device: torch.device | str, seed: int) -> None:
        seed_process(seed, 0)
        self.config, self.device = config, torch.device(device)
        self.data = window_data(config, self.device)
        self.prior = MotionPrior(config, self.data.frames, self.data.channels, self.device)
        self.prior.obs_normalizer.fill(self.data.draw(config.num_samples_stat).unflatten(-1, (self.data.frames, -1)),
                                       config.normalizer_std_clip)
        learned = {name: p for name, p in self.prior.dmodel.named_parameters() if p.requires_grad}
        self.optimizer = FlatOptimizer(learned, OptimizerConfig(
            type="Adam", learning_rate=config.lr, weight_decay=WEIGHT_DECAY, grad_clip=config.grad_clip_norm),
            Distributed.single(self.device))
        self.iteration = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._step = Graphed(self._learn, self.device, state=[*self.optimizer.mutable(), self._loss_sum])

    def _learn(self) -> None:
        with torch.no_grad():
            x = self.prior.obs_normalizer.normalize(self.data.draw(self.config.batch_size))
        loss = self.prior.loss(x, self.config.loss_type)
        self.optimizer.set_gradient(loss)
        self.optimizer.step()
        self._loss_sum.add_(loss.detach())

    def run(self, iterations: int) -> float:
        """Train for so many iterations; returns the mean loss."""
        self._loss_sum.zero_()
        for _ in range(iterations):
            self._step()
            if self.prior.ema_dmodel is not None:
                self.prior.ema_dmodel.update(self.iteration)
            self.iteration += 1
        return float(self._loss_sum) / iterations

    def state(self) -> dict[str, Tensor]:
        """Everything to continue exactly."""
        state = {f"prior.{name}": x for name, x in self.prior.state_dict().items()}
        state |= {f"optimizer.{name}": x for name, x in self.optimizer.state_dict().items()}
        state |= {"iteration": torch.tensor(self.iteration), "cpu_generator": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["generator"] = torch.cuda.get_rng_state(self.device)
        return state

    def load(self, state: Mapping[str, Tensor], where: str) -> None:
        """Continue from :meth:`state`. Raises UserError where it does not fit."""
        own = self.state()
        fill_tensors(own, state, where)  # modules in place
        self.iteration = int(own["iteration"])
        torch.set_rng_state(own["cpu_generator"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(own["generator"], self.device)


def train_prior(config: PriorConfig, out_dir: Path, device: torch.device | str = "cpu", seed: int = 0,
                overwrite: bool = False, tell: Callable[[str], None] = print) -> bool:
    """Train the prior of a file, or finish its training; False where that was done before.

    Args:
        out_dir: its folder, see the module's text.
        overwrite: train anew over a prior of other clips or settings.
        tell: is told how far it has come.

    Raises:
        AssetMissingError, UserError: a file is missing or wrong, or ``out_dir`` holds another prior.
    """
    out_dir, mark = Path(out_dir), digest(config)
    known = read_json(out_dir / "prior.json")
    resume = known.get("digest") == mark
    if resume and known.get("finished") and (out_dir / "model.pt").is_file():
        tell(f"{out_dir / 'model.pt'} is the prior of these clips and settings already")
        return False
    if not resume and not overwrite and ((out_dir / "model.pt").exists() or known):
        raise UserError(f"{out_dir} holds a prior of other clips or settings: --overwrite true replaces it, or give "
                        "another --out_dir")
    training = PriorTraining(config, device, seed)
    total, before, log = config.num_iterations, 0.0, format_row(["Iteration", "Loss"])
    if resume and (out_dir / "training.pt").is_file():
        training.load(read_model(out_dir / "training.pt"), str(out_dir / "training.pt"))
        before, log = float(known["seconds"]), (out_dir / "log.txt").read_text()
        tell(f"continues at iteration {training.iteration:,}")
    write_configuration(config, out_dir)
    parameters = sum(p.numel() for p in training.prior.dmodel.parameters())
    tell(f"prior of {training.data.scene.motions.num_motions} clips: windows of {training.data.frames} frames with "
         f"{training.data.channels} numbers, {parameters:,} parameters, on {training.device}")
    start, first = time.monotonic(), training.iteration
    while training.iteration < total:
        loss = training.run(min(config.output_iter, total - training.iteration))
        done, spent = training.iteration, time.monotonic() - start
        log += format_row([str(done), f"{loss:.6g}"])
        save_model(out_dir / "model.pt", training.prior.state_dict())
        save_model(out_dir / "training.pt", training.state())
        write_text(out_dir / "log.txt", log)
        if done == total:
            write_samples(training, out_dir / "samples")
        write_json(out_dir / "prior.json", {
            "digest": mark, "finished": done == total, "iteration": done, "loss": loss, "seconds": before + spent,
            "parameters": parameters, "clips": training.data.scene.motions.num_motions, "seed": seed})
        tell(f"iteration {done:,} of {total:,} | loss {loss:.4f} | "
             f"{duration(spent / (done - first) * (total - done))} left")
    (out_dir / "training.pt").unlink(missing_ok=True)
    return True


def write_configuration(config: PriorConfig, out_dir: Path) -> None:
    """``diffusion_config.yaml`` and the ``env_config.yaml`` that it names."""
    env_file = out_dir / "env_config.yaml"
    env = merge(load_layered(config.env_config), {"motion_file": str(config.motion_file)})
    write_text(env_file, yaml.safe_dump(env, sort_keys=False))
    data = config.model_dump(mode="json") | {"env_config": str(env_file)}
    write_text(out_dir / "diffusion_config.yaml", yaml.safe_dump(data, sort_keys=False))


def write_samples(training: PriorTraining, folder: Path) -> None:
    """Generated windows as clips, where a window tells the root's height."""
    data, prior = training.data, training.prior
    if not data.scene.config.root_height_obs:
        return
    character, dt = data.scene.character, data.scene.dt
    training.prior.eval()
    states = decode_windows(prior.sample(NUM_SAMPLES).unflatten(-1, (data.frames, -1)), character, dt)
    frames = torch.cat([states.root_pos, quat_to_exp_map(states.root_rot), character.rot_to_dof(states.joint_rot)], -1)
    for number, rows in enumerate(frames.cpu().numpy()):
        save_motion(folder / f"motion_{number:03d}.pkl", MotionClip(LoopMode.CLAMP, 1.0 / dt, rows))

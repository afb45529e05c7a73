"""Gymnasium's vector interface (1.x) over an environment: ``VectorEnv(mimickit.make("amp_g1", num_envs=4096))``.

Needs the package gymnasium: ``pip install mimickit[gymnasium]``. docs/own_learner.md has examples.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from mimickit.envs.base import DoneFlag, VecEnv
from mimickit.util.distributed import seed_process

Array = Any  # numpy.ndarray or torch.Tensor


class VectorEnv(gymnasium.vector.VectorEnv):
    """``N`` worlds as one vector environment.

    ``terminated``: the character failed, or a clip that does not loop has ended; the value beyond is 0. ``truncated``:
    the time is up; the value beyond is that of the last observation.

    How worlds begin their next episode (``metadata["autoreset_mode"]``):

    * ``same_step``: in the step that ends an episode. It returns the first observation of the next episode; the last
      one of the episode that ended is ``infos["final_obs"]``, in the rows where ``infos["_final_obs"]`` is true.
    * ``next_step``: in the step after it. The step that ends an episode returns its last observation; the next one
      ignores that world's action and returns the first observation of a new episode with reward 0 and both flags
      false. Leave these transitions out of training. Such worlds are reset twice, which costs time.

    ``infos`` also holds ``env.info``, what a method needs besides (``disc_obs`` for example), of the state before
    resets.

    Args:
        env: of :func:`mimickit.make`.
        autoreset: see above.
        arrays: ``numpy``, or ``torch`` for tensors on ``env.device``, which are not copied to the host. Actions may be
            either, [N, A] within ``action_space``; values outside are clamped.
    """

    def __init__(self, env: VecEnv, autoreset: Literal["same_step", "next_step"] = "same_step",
                 arrays: Literal["numpy", "torch"] = "numpy") -> None:
        self.env, self.num_envs = env, env.num_envs
        self._autoreset, self._arrays = AutoresetMode[autoreset.upper()], arrays
        self.metadata = {"autoreset_mode": self._autoreset, "render_modes": [], "render_fps": round(1.0 / env.dt)}
        low, high = env.action_low.cpu().numpy(), env.action_high.cpu().numpy()
        self.single_action_space = gymnasium.spaces.Box(low, high, dtype=numpy.float32)
        self.single_observation_space = gymnasium.spaces.Box(-numpy.inf, numpy.inf, (env.obs.shape[1],), numpy.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._ended = torch.zeros_like(env.done, dtype=torch.bool)  # in the last step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin a new episode in every world. ``seed`` seeds Python's, NumPy's and torch's generators; there are no
        options."""
        super().reset(seed=seed)
        if seed is not None:
            seed_process(seed, 0)
        self.env.reset()
        self._ended.zero_()
        return self._out(self.env.obs), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Returns observations [N, O], rewards, terminated, truncated [N] and infos. Raises ValueError for actions of
        another shape."""
        env, before = self.env, self._ended
        actions = torch.as_tensor(actions, dtype=torch.float32, device=env.device)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions of shape {tuple(actions.shape)}; needed is {self.action_space.shape}")
        env.step(actions)
        infos = {name: self._out(value) for name, value in env.info.items()}
        infos |= {f"_{name}": self._out(torch.ones_like(before)) for name in env.info}
        obs, reward = env.obs, env.reward
        if self._autoreset is AutoresetMode.NEXT_STEP:
            obs, reward = env.next_obs, reward.masked_fill(before, 0.0)
            if before.any():  # what these worlds did in this step never happened
                env.reset(before)
                obs = torch.where(before.unsqueeze(-1), env.obs, obs)
        self._ended = env.done != DoneFlag.NULL
        if self._autoreset is AutoresetMode.SAME_STEP and (self._arrays == "torch" or self._ended.any()):
            infos |= {"final_obs": self._out(env.next_obs), "_final_obs": self._out(self._ended)}
        truncated = env.done == DoneFlag.TIME
        return (self._out(obs), self._out(reward), self._out(self._ended & ~truncated), self._out(truncated), infos)

    def close_extras(self, **_: Any) -> None:
        self.env.close()

    def _out(self, value: torch.Tensor) -> Array:
        """A copy: the environment overwrites its buffers in the next step."""
        return value.clone() if self._arrays == "torch" else value.to("cpu", copy=True).numpy()

"""The loop that runs an exported policy in plain MuJoCo. It needs NumPy, MuJoCo and onnxruntime, and nothing else.

Copy it together with :mod:`mimickit.deploy.observation` and put your robot in MuJoCo's place: what an episode reads of
``data`` is what the robot must measure or estimate, what it writes to ``data.ctrl`` are the targets of the joints'
position controllers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
import onnxruntime

from mimickit.deploy.observation import Character, Reference, State, observe

FAILED, SUCCEEDED, TIME_OUT, RUNNING = "failed", "succeeded", "time out", "running"


class Step(NamedTuple):
    """One control step of an episode, for measures."""

    state: State
    reference: State
    action: np.ndarray  # [D] targets, rad
    ground_force: np.ndarray  # [B, 3] N, of the ground on each body in the last physics step
    goal: dict[str, np.ndarray]  # of a task, in world axes, after the step
    end: str


class World:
    """Where a policy acts. This one is as the policy expects it; :mod:`mimickit.deploy.disturbances` has another."""

    def load(self, file: str) -> mujoco.MjModel:
        """The model of ``policy.xml``."""
        return mujoco.MjModel.from_xml_path(file)

    def begin(self, loop: Loop, rng: np.random.Generator) -> None:
        """Before an episode."""

    def sense(self, now: State) -> State:
        """What the robot knows of its state."""
        return now

    def drive(self, data: mujoco.MjData, controls: np.ndarray, substep: int) -> None:
        """Tell the controllers their targets, before a physics step."""
        data.ctrl[:] = controls


class Loop:
    """An exported policy and its world.

    Args:
        policy: content of ``policy.json``, names as attributes.
        folder: where its files are.
        world: which one.

    Attributes:
        data, target: MuJoCo's data of the world, and of the reference where it was last looked up.
        balls: dofs of ball joints.
    """

    def __init__(self, policy: Any, folder: Path, world: World | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.network = onnxruntime.InferenceSession(
            str(folder / policy.network), options, providers=["CPUExecutionProvider"])
        self.policy, self.dt = policy, 1.0 / policy.control_rate
        self.world = world or World()
        self.model = self.world.load(str(folder / policy.model))
        self.data, self.target = mujoco.MjData(self.model), mujoco.MjData(self.model)
        self.character = Character(self.model, policy)
        self.reference = Reference(policy, np.load(folder / policy.reference.file), self.character.all_quats)
        self._ahead = sorted({x.steps_ahead for x in policy.observation if x.steps_ahead is not None})
        allowed = policy.episode.contact_bodies
        self._may_touch = np.array([allowed is None or body.name in allowed for body in policy.bodies])
        self.balls = np.array([index for index, dof in enumerate(policy.dofs)
                                if self.model.joint(dof.joint).type[0] == mujoco.mjtJoint.mjJNT_BALL], int)
        self._ground = self.model.geom("ground").id

    def episode(self, rng: np.random.Generator, on_step: Callable[[Step], None], max_steps: float = np.inf) -> str:
        """Run one episode, of at most so many control steps; returns how it ended."""
        policy, dt, latent, renewal = self.policy, self.dt, None, 0.0
        clip = rng.choice(len(self.reference.clips), p=[clip.weight for clip in self.reference.clips])
        start = rng.uniform(0.0, self.reference.clips[clip].length) if policy.episode.random_start else 0.0
        self.world.begin(self, rng)
        now = self.reset(clip, start, at_rest=rng.random() < policy.episode.rest_probability)
        task = TASKS[policy.goal.kind](policy.goal, rng) if policy.goal is not None else Task()
        goal, step, end = task.goal(now, 0.0), 0, RUNNING
        while end == RUNNING:
            time = start + step * dt
            if policy.latent is not None and step * dt >= renewal:
                latent = unit(rng.standard_normal(policy.latent.size)).astype(np.float32)
                renewal = step * dt + rng.uniform(policy.latent.time_min, policy.latent.time_max)
            targets = [self.lookup(clip, time + ahead * dt) for ahead in self._ahead]
            sensed = self.world.sense(now)
            action = self.act(observe(policy, sensed, targets, self.reference.phase(clip, time), goal), latent)
            controls = self.controls(action)
            for substep in range(policy.substeps):
                self.world.drive(self.data, controls, substep)
                mujoco.mj_step(self.model, self.data)
            mujoco.mj_kinematics(self.model, self.data)  # mj_step leaves poses as they were before it moved
            step += 1
            now, reference = self.character.state(self.data), self.lookup(clip, time + dt)
            force = self.ground_force()
            end = self.end_of(now, reference, force, self.reference.over(clip, time + dt))
            if end == RUNNING and step >= min(max_steps, policy.episode.steps or np.inf):
                end = TIME_OUT
            goal = task.goal(now, step * dt)
            on_step(Step(now, reference, action, force, goal, end))
        return end

    def reset(self, clip: int, time: float, at_rest: bool = False) -> State:
        """Begin in the pose and with the velocities of a clip at a time (s), or at rest in the default pose."""
        mujoco.mj_resetData(self.model, self.data)
        qpos, velocity = self.reference.at(clip, time)
        if at_rest:
            qpos, velocity = self.model.key("default").qpos, np.zeros_like(velocity)
        return self.character.place(self.model, self.data, qpos, velocity)

    def lookup(self, clip: int, time: float) -> State:
        """The reference at a time (s) of a clip; MuJoCo's kinematics find where its bodies are."""
        return self.character.place(self.model, self.target, *self.reference.at(clip, time))

    def act(self, obs: np.ndarray, latent: np.ndarray | None = None) -> np.ndarray:
        """The network's action [D] for an observation [O]: targets, rad."""
        inputs = {"obs": obs[None]} if latent is None else {"obs": obs[None], "latent": latent[None]}
        return self.network.run(["action"], inputs)[0][0].astype(float)

    def controls(self, action: np.ndarray) -> np.ndarray:
        """What MuJoCo's controllers get: the action, rotations of ball joints by the shorter way around."""
        turns = action[self.balls].reshape(-1, 3)
        angles = np.linalg.norm(turns, axis=-1, keepdims=True)
        shorter = (angles + np.pi) % (2.0 * np.pi) - np.pi
        controls = action.copy()
        controls[self.balls] = np.where(angles > np.pi, turns * shorter / np.maximum(angles, 1.0), turns).ravel()
        return controls

    def ground_force(self) -> np.ndarray:
        """Force [B, 3] (N, world axes) of the ground on each body in the last physics step."""
        force, local = np.zeros((self.model.nbody, 3)), np.zeros(6)
        for index, contact in enumerate(self.data.contact):
            if self._ground in contact.geom:
                mujoco.mj_contactForce(self.model, self.data, index, local)
                sign = 1.0 if contact.geom[0] == self._ground else -1.0  # it acts on the second geom
                other = contact.geom[1] if sign > 0.0 else contact.geom[0]
                force[self.model.geom_bodyid[other]] += sign * (local[:3] @ contact.frame.reshape(3, 3))
        return force[self.character.bodies]

    def end_of(self, now: State, reference: State, force: np.ndarray, clip_over: bool) -> str:
        """Whether the episode fails, else whether it succeeds, with this step."""
        episode = self.policy.episode
        touches = (np.abs(force) > episode.contact_force).any(axis=-1)
        if (touches & ~self._may_touch).any() or (
                episode.pose_distance is not None and self.far(now, reference) > episode.pose_distance):
            return FAILED
        return SUCCEEDED if clip_over and episode.ends_with_clip else RUNNING

    def far(self, now: State, reference: State) -> float:
        """How far (m) the body is from where the reference has it that is farthest."""
        if self.policy.episode.pose_frame == "world":
            return float(np.linalg.norm(now.body_pos - reference.body_pos, axis=-1).max())
        both = [state.body_pos - state.root_pos for state in (now, reference)]
        if self.policy.episode.pose_frame == "root":
            both = [offset @ state.root_mat for offset, state in zip(both, (now, reference))]
        return float(np.linalg.norm(both[0] - both[1], axis=-1).max())


class Task:
    """A policy without a goal. Those with one draw it, and tell it in world axes."""

    def goal(self, now: State, time: float) -> dict[str, np.ndarray]:
        """What is asked for now, ``time`` (s) after the episode began."""
        return {}


class Changing(Task):
    """A goal that is drawn anew from time to time."""

    def __init__(self, settings: Any, rng: np.random.Generator) -> None:
        self._settings, self._rng, self._until = settings, rng, 0.0

    def goal(self, now: State, time: float) -> dict[str, np.ndarray]:
        changed = time >= self._until
        if changed:
            self._until = time + self._rng.uniform(self._settings.time_min, self._settings.time_max)
            self._draw(now, self._rng.uniform(self._settings.low, self._settings.high))
        return {"changed": np.array([changed]), **self._told(now)}


class Location(Changing):
    """A place to go to."""

    def _draw(self, now: State, distance: float) -> None:
        self._place = now.root_pos[:2] + distance * direction(self._rng.uniform(-np.pi, np.pi))

    def _told(self, now: State) -> dict[str, np.ndarray]:
        return {"offset": self._place - now.root_pos[:2]}


class Steering(Changing):
    """A direction and a speed to go, and where to face."""

    def _draw(self, now: State, speed: float) -> None:
        angle = self._rng.uniform(-np.pi, np.pi) if self._settings.any_direction else 0.0
        face = self._rng.uniform(-np.pi, np.pi) if self._settings.any_face else angle
        self._drawn = {"direction": direction(angle), "speed": np.array([speed]), "face": direction(face)}

    def _told(self, now: State) -> dict[str, np.ndarray]:
        return self._drawn


TASKS = {"location": Location, "steering": Steering}


def direction(angle: float) -> np.ndarray:
    """Unit vector [2] at an angle (rad) from X."""
    return np.array([np.cos(angle), np.sin(angle)])


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector divided by its length."""
    return vector / np.linalg.norm(vector)

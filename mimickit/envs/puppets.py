"""Half-skilled bodies, moved by hand in place of physics: what a gate must stop. For ``tools/measure_baselines.py``.

A puppet says where the character of every environment is at each moment. It needs no policy and obeys no physics, so it
is better at what it does than anybody who has learned only that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from mimickit.anim.motion_lib import MotionLib
from mimickit.envs.deepmimic import reaching_times
from mimickit.envs.disc_obs import ClipWindows
from mimickit.envs.env import Env
from mimickit.envs.ref_motion import clip_state
from mimickit.envs.scene import Scene
from mimickit.envs.similarity import (
    clip_snippets,
    frechet_distance,
    moments,
    snippets,
)
from mimickit.envs.tasks import ON_COURSE_SPEED, SteeringGoal
from mimickit.envs.terms import CharState, EnvTerms, RefState, StepState
from mimickit.util.rotations import heading, quat_mul, quat_rotate, yaw_quat

Puppet = Callable[[Tensor, RefState], CharState]
"""Where the characters are at environment times [N] (s), given their reference at that moment."""
TURN = torch.pi / 2  # rad, a clip whose heading changes by more turns
SPEEDS = 8  # constant ones that are tried


class PuppetEnv(Env):
    """An environment in which a puppet takes the place of physics; for a scene with a ``StillEngine``."""

    def __init__(self, scene: Scene, terms: EnvTerms, puppet: Puppet) -> None:
        self._puppet: Puppet | None = None
        super().__init__(scene, terms)
        self._puppet = puppet
        self.reset()

    def _state(self, ref: RefState) -> StepState:
        if self._puppet is None:
            return super()._state(ref)
        char = self._puppet(self._time(), ref)
        self.scene.place(self._all, char)
        return StepState(self._time(), char, ref)


def puppets(env: Env) -> Iterator[tuple[str, Puppet]]:
    """All that apply to an environment, with the name of the baseline. Of several with the same name that with the
    least ``vel_err`` counts."""
    scene, goal = env.scene, env.terms.memory.get("goal")
    one_clip = scene.motions.num_motions == 1
    if goal is None:
        yield "frozen_pose", frozen_pose(scene)
    if "similarity" in env.terms.metrics:
        yield "statue", statue(env)
    if one_clip and turn_of(scene) > TURN:
        yield "no_turn", no_turn(env)
    if "run_up" in env.terms.metrics:
        yield "starts_behind_the_box", starts_behind_the_box(env)
    if isinstance(goal, SteeringGoal):
        low, high = goal.speeds
        for step in range(SPEEDS if high - low > 2 * ON_COURSE_SPEED else 0):
            speed = torch.full_like(goal.speed, low + (high - low) * (step + 0.5) / SPEEDS)
            yield "constant_speed", walker(env, lambda speed=speed: speed, 0.0)
        yield "wrong_facing", walker(env, lambda: goal.speed, torch.pi / 2)


def start_of(env: Env) -> CharState:
    """The clips' states [N, ...] in which the present episodes began."""
    reference = env.terms.reference
    clips = getattr(reference, "clips", reference)
    return clip_state(env.scene.motions, clips.ids, clips.start)


def at(scene: Scene, root_pos: Tensor, root_rot: Tensor, joint_rot: Tensor, root_vel: Tensor | None = None,
       root_ang_vel: Tensor | None = None) -> CharState:
    """A pose [N, ...] held still, but for its root."""
    still = torch.zeros_like(root_pos)
    dof_vel = torch.zeros(len(root_pos), scene.character.num_dofs, device=scene.device)
    return CharState(
        root_pos, root_rot, still if root_vel is None else root_vel, still if root_ang_vel is None else root_ang_vel,
        joint_rot, dof_vel, *scene.character.forward_kinematics(root_pos, root_rot, joint_rot))


def frozen_pose(scene: Scene) -> Puppet:
    """The clips' mean pose, carried along by the reference's root."""
    motions = scene.motions
    ids = motions.sample_motions(4096)
    rotations = motions.frame(ids, motions.sample_times(ids)).joint_rot.double()  # [K, J, 4]
    pose = torch.linalg.eigh(torch.einsum("kji,kjl->jil", rotations, rotations))[1][..., -1].float()  # Markley 2007

    def puppet(time: Tensor, ref: RefState) -> CharState:
        now = ref.now
        return at(scene, now.root_pos, now.root_rot, pose.expand_as(now.joint_rot), now.root_vel, now.root_ang_vel)

    return puppet


def statue(env: Env) -> Puppet:
    """The pose of the clips that held still is most like their motion. It stands where the episode began, and faces
    the way it is asked to."""
    scene, metric, goal = env.scene, env.terms.metrics["similarity"], env.terms.memory.get("goal")
    windows = metric.windows
    ids = scene.motions.sample_motions(2048)
    frames = windows.ending(ids, scene.motions.sample_times(ids))
    still = CharState(*(None if x is None else x[:, -1:].expand_as(x) for x in frames))
    best = int(distances(snippets(still), metric.clips).amin(dim=1).argmin())
    pose = CharState(*(None if x is None else x[best, -1:] for x in frames))

    def puppet(time: Tensor, ref: RefState) -> CharState:
        start = start_of(env)
        face = torch.atan2(goal.face[:, 1], goal.face[:, 0]) if isinstance(goal, SteeringGoal) else heading(
            start.root_rot)
        root_pos = torch.cat([start.root_pos[:, :2], pose.root_pos[:, 2:].expand(len(time), 1)], dim=-1)
        root_rot = quat_mul(yaw_quat(face - heading(pose.root_rot)), pose.root_rot.expand(len(time), 4))
        return at(scene, root_pos, root_rot, pose.joint_rot.expand(len(time), -1, -1))

    return puppet


def turn_of(scene: Scene) -> float:
    """How far (rad) the heading of the only clip comes away from where it began."""
    time = torch.arange(0.0, float(scene.motions.lengths[0]), scene.dt, device=scene.device)
    angle = heading(clip_state(scene.motions, torch.zeros_like(time, dtype=torch.int64), time).root_rot)
    return float(torch.atan2(torch.sin(angle - angle[0]), torch.cos(angle - angle[0])).abs().max())


def no_turn(env: Env) -> Puppet:
    """The clip, in step and in its place, but with the heading that the episode began with."""

    def puppet(time: Tensor, ref: RefState) -> CharState:
        now = ref.now
        back = yaw_quat(heading(start_of(env).root_rot) - heading(now.root_rot))
        root_rot = quat_mul(back, now.root_rot)
        body_pos, body_rot = env.scene.character.forward_kinematics(now.root_pos, root_rot, now.joint_rot)
        spin = quat_rotate(back, now.root_ang_vel) * torch.tensor([1.0, 1.0, 0.0], device=back.device)
        return now._replace(root_rot=root_rot, root_vel=quat_rotate(back, now.root_vel), root_ang_vel=spin,
                            body_pos=body_pos, body_rot=body_rot)

    return puppet


def starts_behind_the_box(env: Env) -> Puppet:
    """Follows the clip perfectly, but for episodes that start before the box: there it stands still."""
    reached = reaching_times(env.scene)

    def puppet(time: Tensor, ref: RefState) -> CharState:
        start, now = start_of(env), ref.now
        run_up = ref.time - time < reached.index_select(0, ref.ids)
        still = at(env.scene, start.root_pos, start.root_rot, start.joint_rot)
        return CharState(*(torch.where(run_up.view(-1, *[1] * (a.dim() - 1)), a, b)
                           for a, b in zip(still, now, strict=True)))

    return puppet


def walker(env: Env, speed: Callable[[], Tensor], beside: float) -> Puppet:
    """Glides in the direction that is asked for at a speed [N] (m/s), turned ``beside`` (rad) from where it should
    face. Of style it says nothing."""
    scene, goal = env.scene, env.terms.memory["goal"]

    def puppet(time: Tensor, ref: RefState) -> CharState:
        start = start_of(env)
        velocity = torch.cat([speed().unsqueeze(-1) * goal.direction, torch.zeros_like(time).unsqueeze(-1)], dim=-1)
        root_pos = scene.engine.root_pos + scene.dt * velocity
        facing = yaw_quat(torch.atan2(goal.face[:, 1], goal.face[:, 0]) + beside)
        return at(scene, root_pos, facing, start.joint_rot, velocity)

    return puppet


def one_clip(env: Env) -> dict[str, float]:
    """What a perfect imitation of one clip of several has of style: of all clips the best value of each measure."""
    metric = env.terms.metrics["similarity"]
    steps, found = metric.windows.num_steps, []
    for file in env.scene.motions.files:
        motions = MotionLib(file, env.character, accumulate_yaw=env.scene.config.accumulate_yaw)
        scene = SimpleNamespace(motions=motions, dt=env.dt, device=env.device)
        clip, weights = clip_snippets(ClipWindows(scene, steps), env.dt)
        own = clip.double() - metric.centre
        mean, covariance = moments(weights.sum(), weights @ own, own.T @ (weights[:, None] * own))
        coverage = distances(metric.clips, clip).amin(dim=1).mean()
        found.append((float(coverage), float(frechet_distance(mean, covariance, *metric.clip_moments))))
    coverage, distance = (min(values) for values in zip(*found, strict=True))
    return {"motion_err": 0.0, "coverage_err": coverage, "motion_dist": distance}


def distances(a: Tensor, b: Tensor) -> Tensor:
    """``snippet_distance`` [n, m] (m) of all pairs of snippets [n, D] and [m, D]."""
    exact = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return exact * (3.0 / a.shape[1]) ** 0.5


def ignored_latent(size: int) -> dict[str, float]:
    """What an encoder can tell of a latent of ``size`` numbers that the motion does not depend on: the mean of one
    coordinate of a point on the sphere, and of that cut off at 0."""
    half = torch.tensor(size / 2.0, dtype=torch.float64)
    absolute = torch.exp(torch.lgamma(half) - torch.lgamma(half + 0.5)) / torch.pi**0.5  # E|z_1|
    return {"test_enc_similarity": 0.0, "test_enc_reward": float(absolute) / 2.0}

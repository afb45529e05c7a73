"""``mimickit export``: a trained policy as files that need neither this repository nor torch to run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimickit.anim.mjcf import CharacterModel, JointKind, action_bounds, load_character_model
from mimickit.anim.motion import LoopMode, load_motion
from mimickit.anim.motion_lib import frame_tables, list_motions, stride
from mimickit.deploy import mujoco_model
from mimickit.deploy.policy_file import FORMAT, NAME, PolicyFile
from mimickit.engines.engine_config import EngineConfig
from mimickit.envs.add import ADDConfig
from mimickit.envs.amp import ASEConfig as ASEEnvConfig
from mimickit.envs.deepmimic import DeepMimicConfig
from mimickit.envs.env import steps_of
from mimickit.envs.imitation import MotionConfig
from mimickit.envs.scene import init_pose
from mimickit.envs.tasks import LocationConfig, SteeringConfig
from mimickit.envs.termination import CONTACT_FORCE_LIMIT
from mimickit.learning.agent import OBS_CLIP
from mimickit.learning.config import AgentConfig, ASEConfig, PolicyConfig
from mimickit.learning.model import GaussianHead, build_net
from mimickit.util.assets import SHIPPED
from mimickit.util.checkpoint import fill_tensors, read_model
from mimickit.util.failures import UserError
from mimickit.util.files import atomic_path, plain, write_json, write_text

NETWORK, MODEL, REFERENCE = "policy.onnx", "policy.xml", "reference.npz"
OPSET, IR_VERSION = 18, 8  # of 2023, which older runtimes read


@dataclass(frozen=True)
class Source:
    """What a policy was trained with.

    Attributes:
        model_file: the model.
        commit, versions: of the code that trained, as far as known.
    """

    env: Any  # EnvConfig
    engine: EngineConfig
    agent: AgentConfig
    model_file: Path
    commit: str | None = None
    versions: Mapping[str, str] | None = None


def export_policy(source: Source, folder: Path) -> PolicyFile:
    """Write ``policy.onnx``, ``policy.json``, ``policy.xml`` and ``reference.npz`` into a folder, over older ones.

    Raises:
        UserError: the policy is of a kind that is not exported, or the model file is of another one.
    """
    env, agent = source.env, source.agent
    if not isinstance(env, MotionConfig):
        raise UserError(f"{env.source}: env_name {env.env_name} has no policy to export")
    if not isinstance(agent, PolicyConfig):
        raise UserError(f"agent {agent.agent_name} has no policy to export")
    model = load_character_model(env.char_file)
    terms = observation_terms(env, model)
    low, high = action_bounds(model, source.engine.control_mode, env.zero_center_action)
    latent = agent.model.latent_dim if isinstance(agent, ASEConfig) else 0
    actor = Actor(sum(term["size"] for term in terms), latent, low, high, agent)
    actor.load(source.model_file)
    spec = mujoco_model.mujoco_spec(model, source.engine, env.static_objects)
    compiled = mujoco_model.compiled(spec, model.file)
    default = init_pose(env, model)
    spec.add_key(name="default", qpos=qpos_of(model, *(x.double().numpy()[None] for x in default), compiled)[0])
    mujoco_model.compiled(spec, model.file)
    arrays, clips = reference_rows(env, model, compiled)

    policy = PolicyFile.model_validate({
        "format": FORMAT, "network": NETWORK, "model": MODEL,
        "inputs": [{"name": "obs", "size": actor.obs_size, "meaning": "observation, as it is"}] + (
            [{"name": "latent", "size": latent, "meaning": "unit vector: the skill"}] if latent else []),
        "outputs": [{"name": "action", "size": model.num_dofs, "meaning": "targets of the dofs, rad"}],
        "control_rate": source.engine.control_freq, "physics_rate": source.engine.sim_freq, "observation": terms,
        "key_bodies": env.key_bodies,
        "bodies": [{"name": name, "joint": JOINTS[kind]}
                   for name, kind in zip(model.body_names, model.joint_kinds, strict=True)],
        "dofs": dof_rows(model, default[2].tolist(), low, high),
        "default_root_position": default[0].tolist(), "default_root_rotation": default[1].tolist(),
        "reference": {"file": REFERENCE, "clips": clips, "phase_frequencies": env.num_phase_encoding},
        "episode": episode(env, source.engine),
        "latent": {"size": latent, "time_min": agent.latent_time_min, "time_max": agent.latent_time_max}
        if latent else None,
        "goal": goal(env),
        "training": {
            "model": "/".join(source.model_file.parts[-2:]),
            "model_sha256": hashlib.sha256(source.model_file.read_bytes()).hexdigest(),
            "agent": agent.agent_name, "commit": source.commit, "versions": source.versions or {},
            "configuration": portable({part: config.model_dump(mode="json")
                                       for part, config in (("env", env), ("engine", source.engine))}),
        },
    })
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(actor, folder / NETWORK)
    with atomic_path(folder / REFERENCE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_text(folder / MODEL, spec.to_xml())
    write_json(folder / NAME, policy.model_dump(mode="json"))
    return policy


def portable(value: Any) -> Any:
    """Plain values in which shipped files are named as in a checkout, so that any installation finds them."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    return value.removeprefix(f"{SHIPPED}/") if isinstance(value, str) else plain(value)


# --- the network ------------------------------------------------------------------------------------------------------


class Actor(nn.Module):
    """Observation (and latent) to targets: normaliser, actor, denormaliser, clamping to the action box.

    Args:
        low, high: [D] action box.
    """

    def __init__(self, obs_size: int, latent: int, low: np.ndarray, high: np.ndarray, config: PolicyConfig) -> None:
        super().__init__()
        self.obs_size, self.latent = obs_size, latent
        layers, features = build_net(config.model.actor_net, obs_size + latent)
        self._actor_layers, self._action_dist = layers, GaussianHead(features, len(low), config.model)
        self.register_buffer("obs_mean", torch.zeros(obs_size))
        self.register_buffer("obs_std", torch.ones(obs_size))
        for name, value in {"low": low, "high": high, "action_mean": 0.5 * (high + low),
                            "action_std": 0.5 * (high - low)}.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    def load(self, path: Path) -> None:
        """Fill it from a model file. Raises UserError where the file belongs to another observation or network."""
        network = {f"_model.{name}": value for name, value in self.state_dict(keep_vars=True).items()
                   if name.startswith(("_actor_layers.", "_action_dist."))}
        needed = {**network, "_obs_norm._mean": self.obs_mean, "_obs_norm._std": self.obs_std,
                  "_a_norm._mean": self.action_mean, "_a_norm._std": self.action_std}
        found = read_model(path)
        fill_tensors(needed, {name: value for name, value in found.items() if name in needed}, str(path))


def write_onnx(actor: Actor, path: Path) -> None:
    """Write the network as one file, weights included; the size of a batch is free.

    The graph is written out here: it is a dozen nodes, which torch's exporter takes seconds and two more packages for.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []

    def constant(name: str, value: Tensor) -> str:
        weights.append(numpy_helper.from_array(value.detach().numpy().astype(np.float32), name))
        return name

    def node(kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def linear(x: str, layer: nn.Linear, name: str) -> str:
        return node("Gemm", x, constant(f"{name}.weight", layer.weight), constant(f"{name}.bias", layer.bias),
                    name=name, transB=1)

    x = node("Sub", "obs", constant("obs_mean", actor.obs_mean), name="obs_centred")
    x = node("Div", x, constant("obs_std", actor.obs_std), name="obs_scaled")
    bounds = [constant(name, torch.tensor(value)) for name, value in (("min", -OBS_CLIP), ("max", OBS_CLIP))]
    x = node("Clip", x, *bounds, name="obs_normalised")
    if actor.latent:
        x = node("Concat", x, "latent", name="obs_and_latent", axis=1)
    for number, layer in enumerate(layer for layer in actor._actor_layers if isinstance(layer, nn.Linear)):
        x = node("Relu", linear(x, layer, f"hidden_{number}"), name=f"relu_{number}")
    x = linear(x, actor._action_dist._mean_net, "mean")
    x = node("Mul", x, constant("action_std", actor.action_std), name="action_scaled")
    x = node("Add", x, constant("action_mean", actor.action_mean), name="action_centred")
    x = node("Max", x, constant("low", actor.low), name="action_above_low")
    node("Min", x, constant("high", actor.high), name="action")

    def port(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])

    inputs = [port(name, size) for name, size in (("obs", actor.obs_size), ("latent", actor.latent)) if size]
    graph = helper.make_graph(nodes, "policy", inputs, [port("action", len(actor.low))], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


# --- policy.json ------------------------------------------------------------------------------------------------------


JOINTS = {JointKind.ROOT: "root", JointKind.FIXED: "fixed", JointKind.HINGE: "hinge", JointKind.SPHERICAL: "ball"}


def observation_terms(env: MotionConfig, model: CharacterModel) -> list[dict[str, Any]]:
    """The blocks of the observation in order, as :func:`mimickit.envs.imitation.motion_observations` has them."""
    axes = "world" if env.global_obs else "heading"
    joints, keys, height = 6 * model.num_joints, 3 * len(env.key_bodies), env.root_height_obs
    blocks = [
        ("root_height", int(height and env.root_pos_obs), "world", "m", "the ground"),
        ("root_rotation", 6, axes, "1", ""),
        ("root_velocity", 3 * int(env.root_vel_obs), axes, "m/s", ""),
        ("root_angular_velocity", 3, axes, "rad/s", ""),
        ("joint_rotations", joints, "parent", "1", ""),
        ("joint_velocities", model.num_dofs, "joint", "rad/s", ""),
        ("key_body_positions", keys, axes, "m", "root"),
    ]
    if env.enable_phase_obs:
        blocks.append(("phase", 1 + 2 * env.num_phase_encoding, "none", "1", ""))
    terms = [dict(zip(("name", "size", "frame", "unit", "relative_to"), block)) for block in blocks]
    target_axes = "world" if env.global_obs else "first target's heading"
    for ahead in env.future_steps:
        terms += [dict(zip(("name", "size", "frame", "unit", "relative_to", "steps_ahead"), (*block, ahead)))
                  for block in (
            ("target_root_position", 2 + int(height), target_axes, "m",
             "root" if env.global_obs and env.root_pos_obs else "first target"),
            ("target_root_rotation", 6, target_axes, "1", ""),
            ("target_joint_rotations", joints, "parent", "1", ""),
            ("target_key_body_positions", keys, target_axes, "m", "target's root"),
        )]
    goals = {LocationConfig: [("goal_offset", 2, "m")],
             SteeringConfig: [("goal_direction", 2, "1"), ("goal_speed", 1, "m/s"), ("goal_face", 2, "1")]}
    for name, size, unit in goals.get(type(env), []):
        terms.append({"name": name, "size": size, "frame": "none" if name == "goal_speed" else "heading", "unit": unit,
                      "relative_to": "root" if name == "goal_offset" else ""})
    return [term for term in terms if term["size"]]


def dof_rows(model: CharacterModel, default: list[float], low: np.ndarray, high: np.ndarray) -> list[dict[str, Any]]:
    """The table of dofs."""
    joints = [name for name, span in zip(model.joint_names, model.dof_slices, strict=True)
              for _ in range(span.stop - span.start)]
    columns = {"name": model.dof_names, "joint": joints, "kp": model.kp, "kd": model.kd, "torque_limit": model.effort,
               "armature": model.armature, "low": model.dof_low, "high": model.dof_high, "default": default,
               "action_low": low, "action_high": high}
    return [dict(zip(columns, row)) for row in zip(*(list(column) for column in columns.values()), strict=True)]


def episode(env: MotionConfig, engine: EngineConfig) -> dict[str, Any]:
    """How episodes begin and end, as :mod:`mimickit.envs` has it."""
    early = env.enable_early_termination
    return {
        "steps": steps_of(env.episode_length, 1.0 / engine.control_freq), "random_start": env.rand_reset,
        "rest_probability": env.default_reset_prob if isinstance(env, ASEEnvConfig) else 0.0,
        "ends_with_clip": isinstance(env, DeepMimicConfig | ADDConfig),
        "contact_bodies": list(env.contact_bodies) if early and env.contact_bodies else None,
        "contact_force": CONTACT_FORCE_LIMIT,
        "pose_distance": env.pose_termination_dist if early and env.pose_termination else None,
        "pose_frame": "world" if env.track_root else "world axes from the root" if env.global_obs else "root",
    }


def goal(env: MotionConfig) -> dict[str, Any] | None:
    """How goals are drawn."""
    if isinstance(env, LocationConfig):
        ranges = {"kind": "location", "low": env.tar_dist_min, "high": env.tar_dist_max,
                  "reached": math.sqrt(env.squared_threshold)}
    elif isinstance(env, SteeringConfig):
        ranges = {"kind": "steering", "low": env.tar_speed_min, "high": env.tar_speed_max,
                  "any_direction": env.rand_tar_dir, "any_face": env.rand_face_dir}
    else:
        return None
    return {**ranges, "time_min": env.tar_change_time_min, "time_max": env.tar_change_time_max}


# --- the reference ----------------------------------------------------------------------------------------------------


def reference_rows(env: MotionConfig, model: CharacterModel, compiled: Any
                   ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The arrays of ``reference.npz`` and the clips in it."""
    files, weights = list_motions(env.motion_file)
    qpos, velocities, clips, first = [], [], [], 0
    for file, weight in zip(files, weights, strict=True):
        clip = load_motion(file, model)
        poses, velocity = frame_tables(clip, model)
        per_period = stride(poses, clip, env.accumulate_yaw).tolist()
        qpos.append(qpos_of(model, poses[:, :3].numpy(), poses[:, 3:7].numpy(), clip.frames[:, 6:].astype(float),
                            compiled))
        velocities.append(velocity.numpy())
        clips.append({"name": Path(file).name, "first": first, "frames": clip.num_frames, "length": clip.length,
                      "loops": clip.loop_mode is LoopMode.WRAP, "weight": weight / sum(weights),
                      "drift": per_period[:3], "yaw": per_period[3], "pivot": per_period[4:]})
        first += clip.num_frames
    return {"qpos": np.concatenate(qpos), "velocity": np.concatenate(velocities)}, clips


def qpos_of(model: CharacterModel, root_pos: np.ndarray, root_rot: np.ndarray, dofs: np.ndarray, compiled: Any
            ) -> np.ndarray:
    """MuJoCo's ``qpos`` [F, nq] of root positions [F, 3], rotations [F, 4] (x, y, z, w) and dofs [F, D]."""
    qpos = np.zeros((len(dofs), compiled.nq))
    qpos[:, :3], qpos[:, 3:7] = root_pos, root_rot[:, [3, 0, 1, 2]]
    for name, kind, span in zip(model.joint_names, model.joint_kinds, model.dof_slices, strict=True):
        if kind in (JointKind.HINGE, JointKind.SPHERICAL):
            address, values = compiled.joint(name).qposadr[0], dofs[:, span]
            if kind is JointKind.HINGE:
                qpos[:, address] = values[:, 0]
            else:
                half = 0.5 * np.linalg.norm(values, axis=-1, keepdims=True)
                qpos[:, address] = np.cos(half)[:, 0]
                qpos[:, address + 1:address + 4] = 0.5 * np.sinc(half / np.pi) * values
    return qpos

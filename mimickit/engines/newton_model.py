"""From a world's description to a Newton model: character, control, ground, objects, N replicas. Start-up only.

The layout of generalised coordinates found here (:class:`JointLayout`) is what the kernels of
:mod:`mimickit.engines.newton_engine` work with.
"""

from __future__ import annotations

import ctypes
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import newton
import numpy as np
import warp as wp
from newton.solvers import SolverMuJoCo

from mimickit.engines.engine import FreeObject, StaticObject, WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.engines.ground import BASE, HALF, POINTS, heights
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.mjcf_file import read_mjcf
from mimickit.util.reading import MAX_MESH_BYTES, at_most

# before any kernel is built: settings are part of the cache's keys
wp.config.enable_backward = False  # the simulation is not differentiated; compiles 13 % faster
wp.config.log_level = wp.LOG_WARNING  # neither a banner nor a line for every module


def _begin_without_driver() -> None:
    """Initialize Warp where there is no NVIDIA driver, without the warning about that, which it cannot be told to leave
    out. Mistakes in ``--devices`` are told elsewhere."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            wp.init()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


_begin_without_driver()

GROUND_LABEL = "ground_plane"
# Newton's default lists pairs of shapes up to 0.2 m apart as contacts. They bear no force: states are bit-equal without
# them, and a character needs a tenth of the contact buffer.
CONTACT_GAP = 0.0
GROUND_FRICTION = 1.0

# joint kinds of the layout
HINGE = 0
SPHERICAL = 1


@dataclass(frozen=True)
class JointLayout:
    """Where each moving joint of the character lives; one entry per hinge or spherical joint, depth first.

    Offsets count from the beginning of a world: ``q`` in Newton's coordinates (a spherical joint has 4, a quaternion
    relative to rest in the parent's anchor), ``qd`` in Newton's velocities, ``dof`` in this project's dofs.
    """

    kind: np.ndarray
    q: np.ndarray
    qd: np.ndarray
    dof: np.ndarray
    num_dofs: int
    coords_per_world: int
    velocities_per_world: int


@dataclass(frozen=True)
class WorldFacts:
    """What the engine needs to know of one world."""

    layout: JointLayout
    body_names: tuple[str, ...]  # of the character, depth first
    bodies_per_world: int  # the character's and those of objects, which follow
    free_bodies: np.ndarray  # [K] of free objects: their bodies, and where their state begins in Newton's layout
    free_q: np.ndarray
    free_qd: np.ndarray
    total_mass: float  # kg
    stiffness: np.ndarray  # [D] N m/rad
    damping: np.ndarray  # [D] N m s/rad
    effort: np.ndarray  # [D] N m
    lower: np.ndarray  # [D] rad, of the MJCF, spherical joints included; zeros unless these are to be limited
    upper: np.ndarray  # [D] rad


def build_world(spec: WorldSpec, config: EngineConfig) -> tuple[newton.ModelBuilder, WorldFacts]:
    """One world without its ground. Compiles nothing.

    Raises:
        AssetMissingError: a character or object file does not exist.
        UserError: a file cannot be used (kinds of joints, body order, pose sizes).
    """
    missing = [str(file) for file in (spec.char_file, *(o.file for o in (*spec.objects, *spec.free_objects)))
               if not os.path.exists(file)]
    if missing:
        raise AssetMissingError(f"missing model files: {', '.join(missing)}")
    builder = _new_builder()
    root = _read_mjcf(spec.char_file)
    _add_mjcf(builder, spec.char_file, root, spec.init_root_pos, spec.init_root_rot, spec.self_collision,
              floating=not spec.fixed_root)
    body_names = _check_bodies(builder, root, spec.char_file)
    layout = _joint_layout(builder, spec.char_file)
    _set_init_pose(builder, layout, spec)
    dofs = dof_indices(layout)
    lower = upper = np.zeros(layout.num_dofs, np.float32)
    if config.spherical_limits:
        lower, upper = _authored_limits(spec, root, layout.num_dofs)
    gains = {  # read before control takes them away
        "total_mass": float(sum(builder.body_mass)),
        "stiffness": np.array(builder.joint_stiffness, np.float32)[dofs],
        "damping": np.array(builder.joint_damping, np.float32)[dofs],
        "effort": np.array(builder.joint_effort_limit, np.float32)[dofs],
    }
    _set_control(builder, config, spec.motors)
    _paint(builder, 0, spec.color)
    add_objects(builder, spec.objects)
    free = [_add_free_object(builder, item) for item in spec.free_objects]
    layout = replace(layout, coords_per_world=len(builder.joint_q), velocities_per_world=len(builder.joint_qd))
    facts = WorldFacts(layout=layout, body_names=body_names, bodies_per_world=len(builder.body_label), lower=lower,
                       upper=upper, **gains, **{name: np.array([place[i] for place in free], np.int32) for i, name
                                                in enumerate(("free_bodies", "free_q", "free_qd"))})
    return builder, facts


def _add_free_object(builder: newton.ModelBuilder, item: FreeObject) -> tuple[int, int, int]:
    """Add an object that moves, behind those already there; its body, and where its coordinates and velocities begin.

    Raises:
        UserError: not exactly one body.
    """
    place = len(builder.body_label), len(builder.joint_q), len(builder.joint_qd)
    first_shape = len(builder.shape_color)
    _add_mjcf(builder, item.file, _read_mjcf(item.file), item.pos, (0.0, 0.0, 0.0, 1.0), self_collision=False,
              floating=True)
    if len(builder.body_label) != place[0] + 1 or len(builder.joint_q) != place[1] + 7:
        raise UserError(f"{item.file}: an object that moves has one body and no joints")
    builder.joint_q[place[1]:] = [*item.pos, 0.0, 0.0, 0.0, 1.0]
    _paint(builder, first_shape, item.color)
    return place


def replicate(world: newton.ModelBuilder, num_envs: int, device: str, roughness: float = 0.0) -> newton.Model:
    """``num_envs`` copies of a world over one ground, on a Warp device; ``roughness`` as in :class:`WorldSpec`."""
    scene = _new_builder()
    material = scene.ShapeConfig(mu=GROUND_FRICTION, restitution=0.0)
    if roughness > 0.0:
        grid = newton.Heightfield(heights(), POINTS, POINTS, HALF, HALF, min_z=-roughness, max_z=0.0)
        scene.add_shape_heightfield(heightfield=grid, cfg=material, label=GROUND_LABEL,
                                    custom_attributes={"mujoco:hfield_base": BASE})
    else:
        scene.add_ground_plane(label=GROUND_LABEL, cfg=material)
    scene.replicate(world, num_envs)
    return scene.finalize(device=device)


def _new_builder() -> newton.ModelBuilder:
    builder = newton.ModelBuilder()
    builder.rigid_gap = CONTACT_GAP
    SolverMuJoCo.register_custom_attributes(builder)
    return builder


def _read_mjcf(path: Path) -> ElementTree.Element:
    """Parse a model without its motors: they are driven with nothing, yet would cost time in every substep."""
    root = read_mjcf(path)
    for section in ("actuator", "sensor", "keyframe"):
        for element in root.findall(section):
            root.remove(element)
    return root


def _add_mjcf(builder: newton.ModelBuilder, path: Path, root: ElementTree.Element, pos: tuple, rot: tuple,
              self_collision: bool, floating: bool, ball_joints: bool = True) -> None:
    folder = Path(path).resolve().parent
    try:
        builder.add_mjcf(
            ElementTree.tostring(root, encoding="unicode"),
            xform=wp.transform(wp.vec3(*pos), wp.quat(*rot)),
            override_root_xform=True,
            floating=floating,
            enable_self_collisions=self_collision,
            convert_3d_hinge_to_ball_joints=ball_joints,
            collapse_fixed_joints=False,
            parse_sites=False,
            parse_mujoco_options=False,
            force_show_colliders=root.find(".//geom[@mesh]") is None,  # meshes show a body alone, primitives add to it
            path_resolver=lambda base, name: _inside(Path(base or folder, name), path),
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path} uses meshes, which need the Python package '{error.name}': pip install {error.name}"
        ) from error
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the engine cannot read it: {type(error).__name__}: {str(error)[:500]}") from error


def _inside(asset: Path, used_by: Path) -> str:
    """The path of a mesh or texture. A model opens no files but those beside and below it."""
    folder = Path(used_by).resolve().parent
    if not asset.resolve().is_relative_to(folder):
        raise UserError(f"{used_by} uses the file {asset}; meshes and textures must lie in {folder} or below it")
    if not os.path.isfile(asset):
        raise AssetMissingError(f"{used_by} uses the file {asset}, which does not exist")
    at_most(asset, asset.stat().st_size, MAX_MESH_BYTES, "bytes")
    return str(asset)


def _check_bodies(builder: newton.ModelBuilder, root: ElementTree.Element, path: Path) -> tuple[str, ...]:
    """The engine's body names, which must be the file's, depth first (a longer list is an error too)."""
    worldbody = root.find("worldbody")
    expected = [b.get("name", "") for b in worldbody.iter("body")] if worldbody is not None else []
    found = [label.rsplit("/", 1)[-1] for label in builder.body_label]
    if not expected:
        raise UserError(f"{path}: no body in <worldbody>")
    if found != expected:
        raise UserError(f"{path}: the engine's bodies {found} differ from the file's, depth first: {expected}")
    return tuple(found)


def _joint_layout(builder: newton.ModelBuilder, path: Path) -> JointLayout:
    kinds, q, qd, dof = [], [], [], []
    num_dofs = 0
    for j, joint_type in enumerate(builder.joint_type):
        if joint_type in (newton.JointType.FREE, newton.JointType.FIXED):
            continue
        if joint_type == newton.JointType.REVOLUTE:
            kind, size = HINGE, 1
        elif joint_type == newton.JointType.BALL:
            kind, size = SPHERICAL, 3
        else:
            body = builder.body_label[builder.joint_child[j]].rsplit("/", 1)[-1]
            raise UserError(f"{path}: body '{body}' must have no joint, one hinge or three hinges")
        kinds.append(kind)
        q.append(builder.joint_q_start[j])
        qd.append(builder.joint_qd_start[j])
        dof.append(num_dofs)
        num_dofs += size
    return JointLayout(
        kind=np.array(kinds, np.int32), q=np.array(q, np.int32), qd=np.array(qd, np.int32),
        dof=np.array(dof, np.int32), num_dofs=num_dofs,
        coords_per_world=len(builder.joint_q), velocities_per_world=len(builder.joint_qd),
    )


def dof_indices(layout: JointLayout) -> np.ndarray:
    """Index into Newton's velocities of each of our dofs, [D]."""
    sizes = np.where(layout.kind == SPHERICAL, 3, 1)
    starts = np.repeat(layout.qd, sizes)
    within = np.concatenate([np.arange(s) for s in sizes]) if len(sizes) else np.zeros(0, int)
    return starts + within


def _authored_limits(spec: WorldSpec, root: ElementTree.Element, num_dofs: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of all hinges in file order, rad, [D] each: read once more, since ball joints do not keep them."""
    scratch = _new_builder()
    _add_mjcf(scratch, spec.char_file, root, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), self_collision=False,
              floating=False, ball_joints=False)
    if len(scratch.joint_limit_lower) != num_dofs:
        raise UserError(f"{spec.char_file} has {len(scratch.joint_limit_lower)} hinges but its bodies have {num_dofs} "
                        "dofs")
    return np.array(scratch.joint_limit_lower, np.float32), np.array(scratch.joint_limit_upper, np.float32)


def _set_init_pose(builder: newton.ModelBuilder, layout: JointLayout, spec: WorldSpec) -> None:
    if spec.init_dof_pos and len(spec.init_dof_pos) != layout.num_dofs:
        raise UserError(
            f"init_dof_pos has {len(spec.init_dof_pos)} numbers, {spec.char_file} has {layout.num_dofs} dofs"
        )
    if not spec.fixed_root:
        builder.joint_q[0:7] = [*spec.init_root_pos, *spec.init_root_rot]
    if not spec.init_dof_pos:
        return
    for kind, q, dof in zip(layout.kind, layout.q, layout.dof, strict=True):
        if kind == HINGE:
            builder.joint_q[q] = spec.init_dof_pos[dof]
        else:
            builder.joint_q[q : q + 4] = _exp_map_to_quat(np.array(spec.init_dof_pos[dof : dof + 3])).tolist()


def _exp_map_to_quat(e: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(e))
    if angle < 1e-8:
        return np.array([0.0, 0.0, 0.0, 1.0])
    return np.append(np.sin(angle / 2) * e / angle, np.cos(angle / 2))


def _set_control(builder: newton.ModelBuilder, config: EngineConfig, motors: bool) -> None:
    """Turn the file's stiffness and damping into controller gains; nothing passive remains."""
    mode = config.control_mode if motors else "none"
    target = {"pos": newton.JointTargetMode.POSITION, "vel": newton.JointTargetMode.VELOCITY}.get(
        mode, newton.JointTargetMode.NONE
    )
    for j, joint_type in enumerate(builder.joint_type):
        start = builder.joint_qd_start[j]
        stop = builder.joint_qd_start[j + 1] if j + 1 < len(builder.joint_type) else len(builder.joint_qd)
        driven = joint_type not in (newton.JointType.FREE, newton.JointType.FIXED)
        for i in range(start, stop):
            builder.joint_target_mode[i] = int(target) if driven else int(newton.JointTargetMode.NONE)
            builder.joint_target_ke[i] = builder.joint_stiffness[i] if driven and mode == "pos" else 0.0
            builder.joint_target_kd[i] = builder.joint_damping[i] if driven and mode in ("pos", "vel") else 0.0
            builder.joint_stiffness[i] = 0.0
            builder.joint_damping[i] = 0.0


def add_objects(builder: newton.ModelBuilder, objects: Iterable[StaticObject]) -> None:
    """Add fixed, colliding objects, each with its own body behind those already there."""
    for item in objects:
        first_shape = len(builder.shape_color)
        _add_mjcf(builder, item.file, _read_mjcf(item.file), item.pos, item.rot, self_collision=False, floating=False)
        _paint(builder, first_shape, item.color)


def _paint(builder: newton.ModelBuilder, first_shape: int, color: tuple[float, float, float]) -> None:
    for shape in range(first_shape, len(builder.shape_color)):
        builder.shape_color[shape] = color

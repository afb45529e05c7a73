"""A character's MJCF file as a complete model of plain MuJoCo: with ground, objects, gains, solver settings.

What Newton's importer and solver make of the same file (:mod:`mimickit.engines.newton_model`), said in MuJoCo's own
terms and without Newton: the two models are compared number by number in tests/sim/test_sim2sim.py.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

import mujoco

from mimickit.anim.mjcf import CharacterModel, JointKind
from mimickit.engines.engine import StaticObject
from mimickit.engines.engine_config import EngineConfig
from mimickit.util.failures import UserError
from mimickit.util.mjcf_file import read_mjcf

GROUND = "ground"
NO_MODEL = ("actuator", "sensor", "keyframe")  # of a character's file; its motors are driven with nothing


def mujoco_spec(model: CharacterModel, config: EngineConfig, objects: Iterable[StaticObject] = ()) -> mujoco.MjSpec:
    """The model of one world: bodies by their names, ground, objects, an actuator for each dof in order.

    The control of an actuator is the target of its dof: an angle (rad), or for a ball joint one number of the
    exponential map. Passive stiffness and damping are gone, they are the gains.

    Raises:
        UserError: a control mode other than ``pos``, spherical limits, or MuJoCo refuses the file.
    """
    if config.control_mode != "pos" or config.spherical_limits:
        raise UserError(f"{model.file}: a model of plain MuJoCo is made for control_mode 'pos' without "
                        f"spherical_limits; this one has '{config.control_mode}'"
                        + (" and spherical_limits" if config.spherical_limits else ""))
    spec = _read(model.file)
    _set_options(spec, config)
    for index, name in enumerate(model.body_names):
        _drive(spec, spec.body(name), model, index)
    for number, item in enumerate(objects):
        _add_object(spec, item, f"object{number}_")
    _add_ground(spec)
    return spec


def compiled(spec: mujoco.MjSpec, path: Path) -> mujoco.MjModel:
    """The compiled model. Raises UserError where MuJoCo refuses it; ``path``: of the character, for the message."""
    try:
        return spec.compile()
    except ValueError as error:
        raise UserError(f"{path}: MuJoCo refuses it: {' '.join(str(error).split())}") from None


def _read(path: Path) -> mujoco.MjSpec:
    root = read_mjcf(path)
    for section in NO_MODEL:
        for element in root.findall(section):
            root.remove(element)
    try:
        spec = mujoco.MjSpec.from_string(ElementTree.tostring(root, encoding="unicode"))
    except ValueError as error:
        raise UserError(f"{path}: MuJoCo cannot read it: {' '.join(str(error).split())}") from None
    spec.modelfiledir = str(Path(path).resolve().parent)
    return spec


def _set_options(spec: mujoco.MjSpec, config: EngineConfig) -> None:
    option = mujoco.MjSpec().option  # MuJoCo's defaults; a file's own options are not read
    option.timestep = 1.0 / config.sim_freq
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    option.impratio = config.impratio
    option.iterations, option.ls_iterations = config.solver_iterations, config.solver_ls_iterations
    option.tolerance = 1e-8
    option.disableflags = int(mujoco.mjtDisableBit.mjDSBL_MULTICCD)
    spec.option = option


def _drive(spec: mujoco.MjSpec, body: mujoco.MjsBody, model: CharacterModel, index: int) -> None:
    """Give a body the joint that its kind says, driven by position control with the gains of the file."""
    kind, dofs, name = model.joint_kinds[index], model.dof_slices[index], model.joint_names[index]
    hinges = list(body.joints)
    if kind is JointKind.HINGE:
        hinges[0].stiffness[:] = 0.0
        hinges[0].damping[:] = 0.0
        _add_motor(spec, model, dofs.start, hinges[0].name, 0)
    if kind in (JointKind.ROOT, JointKind.SPHERICAL):
        for hinge in hinges:
            spec.delete(hinge)
    if kind is JointKind.ROOT:
        body.add_freejoint(name=name or "root")
    if kind is JointKind.SPHERICAL:
        body.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_BALL, limited=False,
                       armature=model.armature[dofs.start], frictionloss=model.frictionloss[dofs.start])
        for axis in range(3):
            motor = _add_motor(spec, model, dofs.start + axis, name, axis)
            motor.forcerange = [-model.effort[dofs.start + axis], model.effort[dofs.start + axis]]


def _add_motor(spec: mujoco.MjSpec, model: CharacterModel, dof: int, joint: str, axis: int) -> mujoco.MjsActuator:
    motor = spec.add_actuator(name=model.dof_names[dof], target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    motor.gear = [float(i == axis) for i in range(6)]
    motor.ctrllimited, motor.ctrlrange = mujoco.mjtLimited.mjLIMITED_FALSE, [0.0, 0.0]  # whatever the file's default
    motor.gaintype, motor.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
    motor.gainprm[0] = model.kp[dof]
    motor.biasprm[1], motor.biasprm[2] = -model.kp[dof], -model.kd[dof]
    return motor


def _add_object(spec: mujoco.MjSpec, item: StaticObject, prefix: str) -> None:
    """Fix an object in the world."""
    x, y, z, w = item.rot
    frame = spec.worldbody.add_frame(pos=list(item.pos), quat=[w, x, y, z])
    child = _read(item.file)
    body = child.worldbody.first_body()
    for joint in list(body.joints):
        child.delete(joint)
    frame.attach_body(body, prefix, "")


def _add_ground(spec: mujoco.MjSpec) -> None:
    """A plane with MuJoCo's own contact parameters; light and a pattern for pictures."""
    spec.add_texture(name=GROUND, type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
                     rgb1=[0.42, 0.42, 0.42], rgb2=[0.48, 0.48, 0.48], width=256, height=256)
    spec.add_texture(name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
                     rgb1=[0.78, 0.79, 0.80], rgb2=[0.78, 0.79, 0.80], width=64, height=64)
    material = spec.add_material(name=GROUND, texrepeat=[1.0, 1.0], texuniform=True)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = GROUND
    spec.worldbody.add_geom(name=GROUND, type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0.0, 0.0, 1.0], material=GROUND,
                            friction=[1.0, 0.005, 0.0001])
    spec.worldbody.add_light(pos=[0.0, 0.0, 5.0], dir=[0.3, 0.4, -1.0], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
                             mode=mujoco.mjtCamLight.mjCAMLIGHT_FIXED)

"""The character reader: the shipped humanoid against its facts, the MJCF subset, and every refusal."""

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest

from mimickit.anim.mjcf import UNLIMITED_EFFORT, JointKind, action_bounds, load_character_model
from mimickit.util.failures import AssetMissingError, UserError

HUMANOID = Path(__file__).parents[3] / "data/assets/humanoid/humanoid.xml"

# body: parent, mass (kg), centre of mass in the body's frame, dofs
HUMANOID_BODIES = {
    "pelvis": (None, 9.995593, (0, 0, 0.113195), []),
    "torso": ("pelvis", 12.01351, (-0.002819282, 0, 0.1479385), ["abdomen_x", "abdomen_y", "abdomen_z"]),
    "head": ("torso", 3.882264, (0, 0, 0.175), ["neck_x", "neck_y", "neck_z"]),
    "right_upper_arm": ("torso", 1.624276, (0, -0.13, 0),
                        ["right_shoulder_x", "right_shoulder_y", "right_shoulder_z"]),
    "right_lower_arm": ("right_upper_arm", 1.092571, (0, -0.11125, 0), ["right_elbow"]),
    "right_hand": ("right_lower_arm", 0.499974, (0, 0, 0), []),
    "left_upper_arm": ("torso", 1.624276, (0, 0.13, 0), ["left_shoulder_x", "left_shoulder_y", "left_shoulder_z"]),
    "left_lower_arm": ("left_upper_arm", 1.092571, (0, 0.11125, 0), ["left_elbow"]),
    "left_hand": ("left_lower_arm", 0.499974, (0, 0, 0), []),
    "right_thigh": ("pelvis", 4.743486, (0, 0, -0.2), ["right_hip_x", "right_hip_y", "right_hip_z"]),
    "right_shin": ("right_thigh", 3.119209, (0, 0, -0.1925), ["right_knee"]),
    "right_foot": ("right_shin", 0.9996871, (0.045, 0, -0.0225), ["right_ankle_x", "right_ankle_y", "right_ankle_z"]),
    "left_thigh": ("pelvis", 4.743486, (0, 0, -0.2), ["left_hip_x", "left_hip_y", "left_hip_z"]),
    "left_shin": ("left_thigh", 3.119209, (0, 0, -0.1925), ["left_knee"]),
    "left_foot": ("left_shin", 0.9996871, (0.045, 0, -0.0225), ["left_ankle_x", "left_ankle_y", "left_ankle_z"]),
}
# joint group: (low, high) per axis, kp, kd, armature, effort
HUMANOID_JOINTS = {
    "abdomen": ([(-1.0472, 1.0472), (-1.0472, 1.5708), (-1.2217, 1.2217)], 1000, 100, 0.02, 200),
    "neck": ([(-0.8727, 0.8727), (-0.6981, 1.0472), (-0.7854, 0.7854)], 100, 10, 0.01, 50),
    "right_shoulder": ([(-1.9199, 2.4435), (-1.5708, 1.5708), (-1.0472, 2.7925)], 400, 40, 0.02, 100),
    "right_elbow": ([(0, 2.7925)], 300, 30, 0.01, 70),
    "left_shoulder": ([(-2.4435, 1.9199), (-1.5708, 1.5708), (-2.7925, 1.0472)], 400, 40, 0.02, 100),
    "left_elbow": ([(-2.7925, 0)], 300, 30, 0.01, 70),
    "right_hip": ([(-1.0472, 0.5236), (-2.4435, 1.0472), (-1.0472, 1.0472)], 500, 50, 0.02, 200),
    "right_knee": ([(0, 2.7925)], 500, 50, 0.02, 150),
    "right_ankle": ([(-0.5236, 0.5236), (-0.9599, 0.9599), (-0.6981, 0.6981)], 400, 40, 0.01, 90),
    "left_hip": ([(-0.5236, 1.0472), (-2.4435, 1.0472), (-1.0472, 1.0472)], 500, 50, 0.02, 200),
    "left_knee": ([(0, 2.7925)], 500, 50, 0.02, 150),
    "left_ankle": ([(-0.5236, 0.5236), (-0.9599, 0.9599), (-0.6981, 0.6981)], 400, 40, 0.01, 90),
}


@pytest.fixture(scope="module")
def humanoid():
    return load_character_model(HUMANOID)


def test_humanoid_tree_and_dof_order(humanoid):
    assert humanoid.body_names == tuple(HUMANOID_BODIES)
    for body, (parent, _, _, dofs) in HUMANOID_BODIES.items():
        index = humanoid.body_index(body)
        assert humanoid.parents[index] == (-1 if parent is None else humanoid.body_index(parent))
        assert list(humanoid.dof_names[humanoid.dof_slices[index]]) == dofs
    assert humanoid.num_dofs == 28 and humanoid.num_joints == 14
    assert humanoid.joint_kinds[humanoid.body_index("left_hand")] is JointKind.FIXED


def test_humanoid_gains_and_limits(humanoid):
    for joint, (limits, kp, kd, armature, effort) in HUMANOID_JOINTS.items():
        dofs = humanoid.dof_slices[humanoid.joint_names.index(joint)]
        np.testing.assert_allclose(np.stack([humanoid.dof_low[dofs], humanoid.dof_high[dofs]], axis=1), limits)
        for found, expected in ((humanoid.kp, kp), (humanoid.kd, kd), (humanoid.armature, armature),
                                (humanoid.effort, effort)):
            assert (found[dofs] == expected).all(), joint


def test_humanoid_masses_in_mujoco(humanoid):
    model = mujoco.MjModel.from_xml_path(str(HUMANOID))
    assert model.body_mass.sum() == pytest.approx(50.0498, abs=1e-4)
    for body, (_, mass, com, _) in HUMANOID_BODIES.items():
        found = model.body(body)
        assert found.mass[0] == pytest.approx(mass, rel=1e-5), body
        np.testing.assert_allclose(found.ipos, com, atol=1e-6)
        if body != "pelvis":
            np.testing.assert_allclose(humanoid.local_pos[humanoid.body_index(body)], found.pos)
    assert [model.joint(i).name for i in range(1, model.njnt)] == list(humanoid.dof_names)


def test_humanoid_action_box(humanoid):
    low, high = action_bounds(humanoid, "pos")
    expected = {
        "abdomen": (-1.88496, 1.88496), "neck": (-1.25664, 1.25664), "right_shoulder": (-3.351, 3.351),
        "left_shoulder": (-3.351, 3.351), "right_elbow": (-0.5585, 3.351), "left_elbow": (-3.351, 0.5585),
        "right_hip": (-2.9322, 2.9322), "left_hip": (-2.9322, 2.9322), "right_knee": (-0.5585, 3.351),
        "left_knee": (-0.5585, 3.351), "right_ankle": (-1.15188, 1.15188), "left_ankle": (-1.15188, 1.15188),
    }
    for joint, (lo, hi) in expected.items():
        dofs = humanoid.dof_slices[humanoid.joint_names.index(joint)]
        np.testing.assert_allclose(low[dofs], lo, atol=1e-5)
        np.testing.assert_allclose(high[dofs], hi, atol=1e-5)


def test_action_box_of_other_modes(humanoid, tmp_path):
    for mode, value in (("vel", 2 * math.pi), ("none", 1.0)):
        low, high = action_bounds(humanoid, mode)
        assert (high == value).all() and (low == -value).all()
    low, high = action_bounds(humanoid, "torque")
    assert (high == humanoid.effort).all() and (low == -humanoid.effort).all()
    _, high = action_bounds(humanoid, "pos", zero_center=True)
    elbow = humanoid.dof_names.index("right_elbow")
    assert high[elbow] == pytest.approx(1.4 * 2.7925)
    with pytest.raises(UserError, match="pd_explicit needs a character of hinges only"):
        action_bounds(humanoid, "pd_explicit")
    with pytest.raises(UserError, match="unknown control_mode 'position'"):
        action_bounds(humanoid, "position")
    hinge = load_character_model(write(tmp_path, '<joint name="h" axis="0 1 0" range="-1 3"/>'))
    np.testing.assert_allclose(action_bounds(hinge, "pd_explicit"), [[-1.8], [3.8]])  # 1 +- 1.4 * 2
    np.testing.assert_allclose(action_bounds(hinge, "pos", zero_center=True), [[-4.2], [4.2]])


BALL = '<geom size="0.1"/>'


def write(folder, joints, top='<compiler angle="radian"/>', body="", name="char.xml", geoms=BALL):
    """A root with one child body that has the given joints and geoms."""
    file = folder / name
    file.write_text(f'<mujoco model="m">{top}<worldbody><geom type="plane" size="1 1 1"/><body name="root">'
                    f'<freejoint/>{BALL}<body name="arm" {body}>{joints}{geoms}</body></body></worldbody></mujoco>')
    return file


def test_degrees_are_the_default_unit(tmp_path):
    model = load_character_model(write(tmp_path, '<joint name="h" axis="0 0 2" range="-90 180"/>', top=""))
    np.testing.assert_allclose([model.dof_low[0], model.dof_high[0]], [-math.pi / 2, math.pi])
    np.testing.assert_allclose(model.joint_axis[1], (0, 0, 1))  # normalised
    assert model.effort[0] == UNLIMITED_EFFORT and model.kp[0] == 0


def test_defaults_classes_and_childclass(tmp_path):
    top = """<compiler angle="radian"/><default><joint damping="1" range="-1 1"/><default class="body">
      <joint stiffness="7" actuatorfrcrange="-3 5"/><default class="soft"><joint stiffness="2"/></default>
      </default></default>"""
    body = 'childclass="body" quat="2 0 0 0"'
    hinge = load_character_model(write(tmp_path, '<joint name="h" axis="1 0 0"/>', top, body))
    assert (hinge.kp[0], hinge.kd[0], hinge.effort[0], hinge.dof_high[0]) == (7, 1, 5, 1)
    np.testing.assert_allclose(hinge.local_rot[1], (0, 0, 0, 1))
    soft = load_character_model(write(tmp_path, '<joint name="h" axis="1 0 0" class="soft" damping="4"/>', top, body))
    assert (soft.kp[0], soft.kd[0], soft.effort[0]) == (2, 4, 5)
    plain = load_character_model(write(tmp_path, '<joint name="h" axis="1 0 0"/>', top))
    assert (plain.kp[0], plain.kd[0], plain.effort[0]) == (0, 1, UNLIMITED_EFFORT)


def test_torque_limit_needs_to_be_switched_on(tmp_path):
    joint = '<joint name="h" axis="1 0 0" range="-1 1" actuatorfrcrange="-3 3" {}/>'
    off = '<compiler angle="radian" autolimits="false"/>'
    assert load_character_model(write(tmp_path, joint.format(""), off)).effort[0] == UNLIMITED_EFFORT
    assert load_character_model(write(tmp_path, joint.format('actuatorfrclimited="true"'), off)).effort[0] == 3
    forbidden = joint.format('actuatorfrclimited="false"')
    assert load_character_model(write(tmp_path, forbidden)).effort[0] == UNLIMITED_EFFORT


def test_untyped_joints_are_hinges_and_a_group_of_three_is_spherical(tmp_path):
    """A default-class joint without a type does not change that."""
    top = '<default><default class="body"><joint armature="0.5" range="-60 60"/></default></default>'
    joints = "".join(f'<joint name="left_hip_{a}" axis="{v}"/>'
                     for a, v in (("x", "1 0 0"), ("y", "0 1 0"), ("z", "0 0 1")))
    model = load_character_model(write(tmp_path, joints, top, 'childclass="body"'))
    assert model.joint_kinds[1] is JointKind.SPHERICAL and model.joint_names[1] == "left_hip"
    assert model.dof_names == ("left_hip_x", "left_hip_y", "left_hip_z")
    assert model.dof_slices == (slice(0, 0), slice(0, 3)) and (model.armature == 0.5).all()


def test_includes_inside_the_folder(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/arm.xml").write_text('<mujoco><joint name="h" axis="1 0 0" range="-1 1"/></mujoco>')
    assert load_character_model(write(tmp_path, '<include file="parts/arm.xml"/>')).dof_names == ("h",)
    with pytest.raises(AssetMissingError, match=r"nothing\.xml"):
        load_character_model(write(tmp_path, '<include file="nothing.xml"/>'))
    (tmp_path / "self.xml").write_text('<mujoco><include file="self.xml"/></mujoco>')
    with pytest.raises(UserError, match="included twice"):
        load_character_model(tmp_path / "self.xml")


HINGE = '<joint name="h{}" axis="{}" range="-1 1"/>'


@pytest.mark.parametrize("joints, body, message", [
    (HINGE.format(1, "1 0 0") + HINGE.format(2, "0 1 0"), "", "body 'arm' has 2 joints; allowed are 0"),
    (HINGE.format(1, "1 0 0") * 4, "", "body 'arm' has 4 joints"),
    (HINGE.format(1, "1 0 0") + HINGE.format(2, "0 0 1") + HINGE.format(3, "0 1 0"), "", "needs 1 0 0, 0 1 0, 0 0 1"),
    ('<joint name="h" type="slide" axis="1 0 0" range="-1 1"/>', "", "joint 'h' of body 'arm' is of type 'slide'"),
    ('<joint name="h" type="ball"/>', "", "is of type 'ball'"),
    ('<freejoint/>', "", "only the root moves freely"),
    ('<joint name="h" axis="1 0 0" range="-1 1" pos="0 0 0.1"/>', "", "joints must sit at the body's origin"),
    ('<joint name="h" range="-1 1"/>', "", "has no axis"),
    ('<joint name="h" axis="0 0 0" range="-1 1"/>', "", "length zero"),
    ('<joint name="h" axis="1 0 0"/>', "", "has no range"),
    ('<joint name="h" axis="1 0 0" range="1 1"/>', "", "empty range"),
    ('<joint name="h" axis="1 0 0" range="-1 inf"/>', "", "2 finite numbers"),
    ('<joint name="h" axis="1 0" range="-1 1"/>', "", "3 finite numbers"),
    ('<joint name="h" axis="1 0 zero" range="-1 1"/>', "", "3 finite numbers"),
    ('<joint name="h" class="soft" axis="1 0 0" range="-1 1"/>', "", "default class 'soft', which is not defined"),
    ('<joint axis="1 0 0" range="-1 1"/>', "", "a joint of body 'arm' has no name"),
    ('<joint name="h" axis="1 0 0" range="-1 1" dampin="20"/>', "",
     "joint 'h' of body 'arm' has the unknown attribute 'dampin' (did you mean 'damping'?)"),
    ('<joint name="h" axis="1 0 0" range="-1 1" stiffness="-1"/>', "", 'has stiffness="-1"; it must not be negative'),
    ('<joint name="h" axis="1 0 0" range="-1 1" damping="-1"/>', "", 'has damping="-1"; it must not be negative'),
    ("", 'euler="0 0 1"', "rotated by 'euler'; only 'quat'"),
    ("", 'quat="0 0 0 0"', "length zero"),
    ("", 'pos="1 2"', "3 finite numbers"),
    ('<body name="root"/>', "", "two bodies are named 'root'"),
    ("<body/>", "", "a body below body 'arm' has no name"),
    ('<frame pos="1 0 0"><body name="hand"/></frame>', "", "contains <frame>"),
    (HINGE.format(1, "1 0 0") + '<body name="b">' + HINGE.format(1, "1 0 0") + "</body>", "", "used twice: h1"),
])
def test_refusals(tmp_path, joints, body, message):
    file = write(tmp_path, joints, body=body)
    with pytest.raises(UserError) as error:
        load_character_model(file)
    assert message in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("geoms, message", [
    ('<geom name="g" size="abc"/>', "geom 'g' of body 'arm' has size=\"abc\"; needed are finite numbers"),
    ('<geom size="0.1" pos="0 0"/>', "geom '0' of body 'arm' has pos=\"0 0\"; needed are 3 finite numbers"),
    ('<geom type="sphere" size="-0.1"/>', "needed is 1 positive number"),
    ('<geom type="capsule" size="0.1"/>', "needed are 2 positive numbers"),
    ('<geom type="box" fromto="0 0 0 0 0 1" size="0.1"/>', "only capsules and cylinders may"),
    ('<geom type="blob" size="1"/>', "is of type 'blob'; allowed are sphere, capsule,"),
    ('<geom type="mesh" mesh="blocks"/>', "the mesh 'blocks', which no <asset> names (did you mean 'block'?)"),
    ('<geom type="mesh"/>', "names no mesh"),
    ('<geom size="0.1" denisty="5"/>', "unknown attribute 'denisty' (did you mean 'density'?)"),
    ('<geom size="0.1" density="-5"/>', "must not be negative"),
    ('<geom size="0.1" class="visual"/>', "default class 'visual', which is not defined"),
    ('<geom size="0.1" density="0"/>', "body 'arm' moves but has no mass"),
    ('<inertial pos="0 0 0" mass="0"/><geom size="0.1"/>', "body 'arm' moves but has no mass"),
    ("", "body 'arm' moves but has no mass"),
])
def test_refused_geoms(tmp_path, geoms, message):
    top = '<asset><mesh name="block" file="block.obj"/></asset>'
    file = write(tmp_path, HINGE.format(1, "1 0 0"), top, geoms=geoms)
    with pytest.raises(UserError) as error:
        load_character_model(file)
    assert message in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("geoms", [
    '<geom type="capsule" fromto="0 0 0 0 0 1" size="0.1"/>', '<geom type="mesh" mesh="block"/>',
    '<geom type="capsule" mesh="block"/>', '<geom size="0.1" mass="2" density="0"/>', '<geom class="ball"/>',
    '<inertial pos="0 0 0" mass="1"/>', f'<body name="hand">{BALL}</body>',
])
def test_geoms_that_give_mass(tmp_path, geoms):
    top = ('<default><default class="ball"><geom size="0.1"/></default></default>'
           '<asset><mesh file="meshes/block.obj"/></asset>')
    assert load_character_model(write(tmp_path, HINGE.format(1, "1 0 0"), top, geoms=geoms)).dof_names == ("h1",)


def test_fixed_bodies_and_mass_bounds_need_no_geoms(tmp_path):
    load_character_model(write(tmp_path, "", geoms=""))
    load_character_model(write(tmp_path, HINGE.format(1, "1 0 0"), '<compiler boundmass="0.1"/>', geoms=""))


@pytest.mark.parametrize("text, message", [
    ('<!DOCTYPE m [<!ENTITY a "b">]><mujoco/>', "<!DOCTYPE"),
    ("<mujoco>", "not valid XML"),
    ("<robot/>", "not <mujoco>"),
    ("<mujoco><worldbody/></mujoco>", "exactly one body"),
    ('<mujoco><worldbody><body name="a"/><body name="b"/></worldbody></mujoco>', "exactly one body"),
    ('<mujoco><compiler angle="grad"/><worldbody><body name="a"/></worldbody></mujoco>', "compiler angle is 'grad'"),
])
def test_refused_files(tmp_path, text, message):
    file = tmp_path / "char.xml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_character_model(file)
    assert message in str(error.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(AssetMissingError, match=r"nobody\.xml"):
        load_character_model(tmp_path / "nobody.xml")
    with pytest.raises(UserError, match="only MJCF"):
        load_character_model(tmp_path / "robot.fbx")
    binary = tmp_path / "binary.xml"
    binary.write_bytes(b"\xff\xfe\x00<")
    with pytest.raises(UserError, match="not readable"):
        load_character_model(binary)


def test_unknown_body_names_the_nearest(humanoid):
    with pytest.raises(UserError, match="did you mean 'right_hand'"):
        humanoid.body_index("righthand")

"""URDF files read as characters, against worked numbers; against Newton's own reader in tests/sim/test_urdf.py."""

import numpy as np
import pytest

from mimickit import run
from mimickit.anim.mjcf import JointKind, load_character_model
from mimickit.util.failures import UserError

INERTIAL = ('<inertial><origin xyz="0 0 0.1" rpy="0 0 1.5707963267948966"/><mass value="2"/>'
            '<inertia ixx="0.01" iyy="0.02" izz="0.025" ixy="0" ixz="0" iyz="0"/></inertial>')
BOX = '<collision><origin xyz="0 0 0.1"/><geometry><box size="0.2 0.1 0.3"/></geometry></collision>'
ROD = ('<collision><origin rpy="0 1.5707963267948966 0"/><geometry><cylinder radius="0.03" length="0.4"/></geometry>'
       "</collision>")
LIMIT = '<limit lower="-1" upper="1.5" effort="30" velocity="10"/>'


def robot(joints=None, links=None):
    links = links or (f'<link name="base">{INERTIAL}{BOX}</link><link name="shin">{INERTIAL}{ROD}</link>'
                      f'<link name="foot">{INERTIAL}</link><link name="arm">{INERTIAL}</link>')
    joints = joints or (
        f'<joint name="knee" type="revolute"><parent link="base"/><child link="shin"/><axis xyz="0 2 0"/>{LIMIT}'
        '<origin xyz="0 0.1 -0.2" rpy="0 0 1.5707963267948966"/><dynamics damping="0.7" friction="0.2"/></joint>'
        '<joint name="ankle" type="fixed"><parent link="shin"/><child link="foot"/><origin xyz="0 0 -0.4"/></joint>'
        f'<joint name="shoulder" type="revolute"><parent link="base"/><child link="arm"/>{LIMIT}</joint>')
    return f'<robot name="small">{links}{joints}</robot>'


def write(folder, text):
    file = folder / "small.urdf"
    file.write_text(text)
    return file


def test_worked_numbers(tmp_path):
    model = load_character_model(write(tmp_path, robot()))
    assert (model.name, model.body_names, model.parents) == ("small", ("base", "shin", "foot", "arm"), (-1, 0, 1, 0))
    assert model.joint_kinds == (JointKind.ROOT, JointKind.HINGE, JointKind.FIXED, JointKind.HINGE)
    assert model.dof_names == ("knee", "shoulder")
    np.testing.assert_allclose(model.local_pos, [[0, 0, 0], [0, 0.1, -0.2], [0, 0, -0.4], [0, 0, 0]])
    np.testing.assert_allclose(model.local_rot[1], [0, 0, 0.5**0.5, 0.5**0.5], atol=1e-12)  # xyzw
    np.testing.assert_allclose(model.joint_axis[[1, 3]], [[0, 1, 0], [1, 0, 0]])  # URDF's default is x
    np.testing.assert_allclose([model.dof_low, model.dof_high], [[-1, -1], [1.5, 1.5]])
    np.testing.assert_allclose([model.kp, model.kd, model.effort, model.frictionloss],
                               [[0, 0], [0.7, 0], [30, 30], [0.2, 0]])


@pytest.mark.parametrize(("old", "new", "message"), [
    ('type="fixed"', 'type="continuous"', "joint 'ankle' is of type 'continuous'; allowed are revolute and fixed"),
    ('link="foot"/>', 'link="toe"/>', "joint 'ankle' has the child 'toe', which is no link"),
    ('<child link="arm"/>', '<child link="shin"/>', "link 'shin' is the child of two joints"),
    ('<parent link="base"/><child link="shin"', '<parent link="foot"/><child link="shin"', "in a circle: foot, shin"),
    ('<link name="arm">', '<link name="leg"/><link name="arm">', "2 links are nobody's child (base, leg)"),
    ('upper="1.5" ', "", "joint 'knee' has no upper in its <limit>"),
    ('upper="1.5" ', 'upper="far" ', "<limit> of joint 'knee' has upper=\"far\"; needed is 1 finite number"),
    ('rpy="0 0 1.5707963267948966"/><dynamics', 'rpy="0 0"/><dynamics', 'has rpy="0 0"; needed are 3'),
    ('<box size="0.2 0.1 0.3"/>', '<cone/>', "a collision of link 'base' is 'cone'; allowed are box"),
    ('<box size="0.2 0.1 0.3"/>', '<mesh filename="a.dae"/>', "shows 'a.dae'; meshes are read from .stl and .obj"),
    ('<link name="arm">', '<link name="foot">', "two links are named 'foot'"),
    ("<robot", "<machine", "its first element is <machine>"),
])
def test_what_cannot_be_read(tmp_path, old, new, message):
    text = robot().replace(old, new, 1)
    file = write(tmp_path, text.replace("</robot>", "</machine>") if "machine" in new else text)
    with pytest.raises(UserError) as error:
        load_character_model(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_a_long_chain_is_refused(tmp_path):
    links = "".join(f'<link name="l{i}">{INERTIAL}</link>' for i in range(300))
    joints = "".join(f'<joint name="j{i}" type="fixed"><parent link="l{i}"/><child link="l{i + 1}"/></joint>'
                     for i in range(299))
    with pytest.raises(UserError, match="links within each other; at most 100"):
        load_character_model(write(tmp_path, robot(joints, links)))


def test_the_mjcf_written_is_the_same_character(tmp_path, capsys):
    file = write(tmp_path, robot())
    assert run.main(["convert-urdf", str(file)]) == 0
    assert "add stiffness=" in capsys.readouterr().out
    model, same = load_character_model(file), load_character_model(tmp_path / "small.xml")
    assert same.dof_names == model.dof_names
    np.testing.assert_array_equal(same.local_rot, model.local_rot)
    assert run.main(["convert-urdf", str(file)]) == 2 and "exists already" in capsys.readouterr().err
    assert run.main(["convert-urdf", str(tmp_path / "none.urdf"), str(tmp_path / "x.xml")]) == 2
    assert run.main(["convert-urdf"]) == 2 and "usage: mimickit convert-urdf" in capsys.readouterr().err

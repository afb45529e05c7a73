"""The authored clips (sword and shield, vaults): what they claim to be, and the tools that make them."""

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from mimickit.anim.motion import LoopMode, MotionClip, check_dofs, load_motion
from mimickit.anim.motion_lib import missing_motions
from mimickit.clips.authoring import Step, aim_sword, monotone, reach, turns_between, walk_feet
from mimickit.clips.check import measure, problems
from mimickit.clips.feet import soles
from mimickit.clips.shape import ASSETS, CHARACTERS, Motion, Shape, pack, unpack
from mimickit.clips.spacetime import GRAVITY, Bodies, Box, Contact, Task, optimise, spline_basis
from mimickit.config import load_yaml
from mimickit.util import rotations as rot
from tools import author_vault
from tools.author_sword_shield import GUARD, LEFT, RIGHT, STANCE, Fighter, attacks
from tools.author_vault import VAULTS, in_run_frame, read_boxes

ROOT = Path(__file__).parents[3]
CLIPS = ROOT / "data/motions/sword_shield"
DATASETS = ROOT / "data/datasets"
ATTACKS = ("atk_overhead", "atk_slash_left", "atk_slash_right", "atk_thrust", "atk_uppercut", "atk_shield_bash",
           "atk_combo_01", "atk_combo_02")
VELOCITIES = {  # clip -> mean velocity in the heading at its start (m/s), with the part of it that may be off
    "walk_forward": (0.98, 0.0), "run_forward": (3.55, 0.0), "walk_backward": (-0.83, 0.0), "strafe_left": (0.0, 0.5),
    "strafe_right": (0.0, -0.5), "advance": (0.45, 0.0), "retreat": (-0.4, 0.0), "idle": (0.0, 0.0),
    "idle_guard": (0.0, 0.0),
}
TURNS = {"turn_in_place_left": 2.5, "turn_in_place_right": -2.5, "run_left": 1.6, "run_right": -1.6, "walk_left": 1.27,
         "walk_right": -1.27}  # clip -> heading at the end minus that at the beginning (rad)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def fighter():
    return Fighter()


def names():
    return sorted(path.stem.removeprefix("sword_shield_") for path in CLIPS.glob("*.pkl"))


def clip_of(name):
    return load_motion(CLIPS / f"sword_shield_{name}.pkl")


def poses(name, fighter):
    motion = unpack(clip_of(name), fighter.shape)
    return motion, *fighter.shape.kinematics(motion)


# -- sword and shield ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", names())
def test_armed_clip_is_sound(name, fighter):
    """Limits, contact, loops (tools/check_motion.py), moderate speeds, the dofs of the armed humanoid."""
    clip = clip_of(name)
    check_dofs(clip, fighter.model, name)
    assert clip.frames.shape[1] == 37
    report = measure(clip, fighter.shape)
    assert problems(report) == []
    assert report.max_speed < 20.0
    assert report.lowest_foot > -0.005


@pytest.mark.parametrize("name", names())
def test_sword_and_shield_meet_nobody(name, fighter):
    """Neither blade nor shield is inside any part of the body but the arm that holds it, nor inside one another."""
    model = mujoco.MjModel.from_xml_path(str(fighter.model.file))
    data = mujoco.MjData(model)
    _, pos, turn = poses(name, fighter)
    bodies = [fighter.model.body_index(model.body(i).name) for i in model.geom_bodyid]
    held = {"sword": ("right_hand", "right_lower_arm", "sword"), "shield": ("left_hand", "left_lower_arm", "shield")}
    place = tensor(model.geom_pos)
    tilt = tensor(model.geom_quat)[:, [1, 2, 3, 0]]
    for frame in range(0, len(pos), 4):
        body_turn = turn[frame, bodies]
        data.geom_xpos[:] = pos[frame, bodies] + rot.quat_rotate(body_turn, place)
        for geom, quat in enumerate(rot.quat_mul(body_turn, tilt)[:, [3, 0, 1, 2]].numpy()):
            matrix = np.zeros(9)
            mujoco.mju_quat2Mat(matrix, quat)
            data.geom_xmat[geom] = matrix
        for geom, body in enumerate(bodies):
            weapon = fighter.shape.character.body_names[body]
            for other in range(model.ngeom) if weapon in held else ():
                part = fighter.shape.character.body_names[bodies[other]]
                if part not in held[weapon]:
                    distance = mujoco.mj_geomDistance(model, data, geom, other, 0.1, None)
                    assert distance > -0.005, f"{weapon} in {part} at frame {frame}: {distance:.3f} m"


@pytest.mark.parametrize("name", sorted(VELOCITIES))
def test_ways_to_go(name, fighter):
    motion, _, _ = poses(name, fighter)
    way = motion.root_pos[-1] - motion.root_pos[0]
    seconds = (len(motion.root_pos) - 1) / motion.fps
    ahead = rot.quat_rotate(rot.quat_conj(rot.yaw_quat(rot.heading(motion.root_rot[0]))), way) / seconds
    wanted = tensor(VELOCITIES[name])
    assert (ahead[:2] - wanted).norm() < 0.05 + 0.15 * wanted.norm()
    assert motion.loops


@pytest.mark.parametrize("name", sorted(TURNS))
def test_ways_to_turn(name, fighter):
    motion, _, _ = poses(name, fighter)
    turned = rot.wrap_angle(rot.heading(motion.root_rot[-1]) - rot.heading(motion.root_rot[0])).item()
    assert abs(turned - TURNS[name]) < 0.3
    assert not motion.loops


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_strike(name, fighter):
    """Fast forward in the middle, at rest in guard at both ends; the leading foot comes down further ahead."""
    motion, pos, _ = poses(name, fighter)
    weapon = fighter.model.body_index("shield" if "bash" in name else "sword")
    hit = pos[:, weapon] - motion.root_pos
    speed = torch.diff(hit, dim=0).norm(dim=-1) * motion.fps
    assert speed[:3].max() < 0.5 and speed[-3:].max() < 0.5
    assert speed.max() > (1.5 if "bash" in name else 5.0)
    assert hit[:, 0].max() > hit[0, 0] + 0.05 and hit[:, 0].max() > hit[:, 0].min() + 0.15
    forward = pos[-1, fighter.model.body_index("left_foot"), 0] - pos[0, fighter.model.body_index("left_foot"), 0]
    assert forward > 0.2
    joints = rot.quat_diff_angle(motion.joint_rot[0], motion.joint_rot[-1])
    assert joints.max() < 0.1


def test_combo_is_two_hits_and_more(fighter):
    """Blows of the combo: separate bursts of the tip's speed."""
    motion, pos, _ = poses("atk_combo_01", fighter)
    tip = pos[:, fighter.model.body_index("sword")] - motion.root_pos
    fast = torch.diff(tip, dim=0).norm(dim=-1) * motion.fps > 4.0
    bursts = int((fast[1:] & ~fast[:-1]).sum())
    assert bursts >= 2


def test_carried_in_the_right_hand_and_on_the_left_arm(fighter):
    """In guard the blade points up and ahead, the shield covers the left front."""
    _, pos, turn = poses("idle_guard", fighter)
    hand, tip = (pos[0, fighter.model.body_index(name)] for name in ("right_hand", "sword"))
    blade = rot.normalize(tip - hand)
    assert blade[2] > 0.7 and blade[0] > 0.2
    shield, torso = (fighter.model.body_index(name) for name in ("shield", "torso"))
    assert pos[0, shield, 0] > pos[0, torso, 0] + 0.1
    normal = rot.quat_rotate(turn[0, shield], tensor([0.0, 0.0, 1.0]))
    assert normal[:2].norm() > 0.5 and normal[0] > 0.0


@pytest.mark.parametrize(("file", "least"), [("dataset_humanoid_sword_shield_locomotion.yaml", 16),
                                             ("dataset_humanoid_sword_shield.yaml", 16 + len(ATTACKS))])
def test_datasets(file, least, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert missing_motions(f"data/datasets/{file}") == []
    motions = load_yaml(DATASETS / file)["motions"]
    assert len(motions) >= least
    files = [item["file"] for item in motions]
    assert len(set(files)) == len(files)
    assert all(item["weight"] > 0 for item in motions)
    listed = {Path(name).stem.removeprefix("sword_shield_") for name in files}
    assert set(VELOCITIES) | set(TURNS) <= listed
    assert (set(ATTACKS) <= listed) == ("locomotion" not in file)


def test_shipped_attacks_come_from_the_tool(fighter):
    for name, motion in attacks(fighter).items():
        made = pack(motion, fighter.shape)
        shipped = clip_of(name)
        assert made.fps == shipped.fps and made.frames.shape == shipped.frames.shape
        assert np.abs(made.frames - shipped.frames).max() < 1e-4, name


# -- pieces ----------------------------------------------------------------------------------------------------------

def test_monotone_keeps_keys_and_holds():
    times, values = [0.0, 1.0, 2.0, 3.0], tensor([[0.0], [1.0], [1.0], [-2.0]])
    at = torch.linspace(-0.5, 3.5, 401, dtype=torch.float64)
    curve = monotone(times, values, at)[:, 0]
    for t, v in zip(times, values[:, 0]):
        assert abs(curve[(at - t).abs().argmin()] - v) < 1e-9
    held = curve[(at >= 1.0) & (at <= 2.0)]
    assert (held - 1.0).abs().max() < 1e-12
    assert curve.max() <= 1.0 + 1e-12 and curve.min() >= -2.0 - 1e-12
    # Fritsch-Butland slope in (0, 0), (1, 1), (2, 4): 6 / (3 / 1 + 3 / 3) = 1.5; half-way: 0.5 - 1.5 / 8
    middle = monotone([0.0, 1.0, 2.0], tensor([[0.0], [1.0], [4.0]]), tensor([0.5]))
    assert abs(middle.item() - 0.3125) < 1e-12


def test_turns_between_take_the_short_way():
    """Keys with opposite signs of the same rotations."""
    angle = tensor([0.0, 0.4, 0.8])
    quats = rot.yaw_quat(angle) * tensor([[1.0], [-1.0], [1.0]])
    found = turns_between([0.0, 1.0, 2.0], quats, torch.linspace(0, 2, 21, dtype=torch.float64))
    yaw = rot.quat_twist_angle(found, tensor([0.0, 0.0, 1.0]))
    assert (torch.diff(yaw) >= -1e-9).all() and abs(yaw[10].item() - 0.4) < 1e-9


def test_arms_reach(fighter):
    """Forward kinematics puts the hand where it was to be, the elbow on its side, the blade along its direction."""
    goal = {"right": tensor([[0.25, -0.30, 0.05]]), "left": tensor([[0.30, 0.10, 0.15]])}
    joints = fighter.rest(1)
    blade = rot.normalize(tensor([[0.5, 0.2, 0.8]]))
    for side, y in (("right", -1.0), ("left", 1.0)):
        shoulder, elbow = reach(fighter.shape, side, goal[side], tensor([[-0.3, y, -0.6]]))
        joints[:, fighter.joint(f"{side}_upper_arm")], joints[:, fighter.joint(f"{side}_lower_arm")] = shoulder, elbow
        if side == "right":
            wrist = fighter.wrist
            joints[:, fighter.joint("right_hand")] = aim_sword(
                rot.quat_mul(shoulder, elbow), blade, fighter.model.dof_low[wrist], fighter.model.dof_high[wrist])
    identity = tensor([[0.0, 0.0, 0.0, 1.0]])
    pos, _ = fighter.shape.kinematics(Motion(tensor([[0.0, 0.0, 0.0]]), identity, joints, 60.0, False))
    at = {name: pos[0, i] for i, name in enumerate(fighter.shape.character.body_names)}
    for side in goal:
        assert (at[f"{side}_hand"] - at["torso"] - goal[side][0]).norm() < 1e-6
    assert at["right_lower_arm"][1] < at["right_upper_arm"][1] and at["left_lower_arm"][1] > at["left_upper_arm"][1]
    assert (rot.normalize(at["sword"] - at["right_hand"]) - blade[0]).norm() < 1e-6
    elbows = fighter.shape.character.rot_to_dof(joints)[0]
    right, left = (fighter.model.dof_slices[fighter.model.body_index(f"{s}_lower_arm")] for s in ("right", "left"))
    assert 0 < elbows[right].item() < 2.79 and -2.79 < elbows[left].item() < 0


def test_wrist_stays_in_range():
    """The blade points backward as far as the wrist turns, no further."""
    low, high = np.array([-1.45, -1.35, -1.2]), np.array([1.45, 1.35, 1.2])
    turn = aim_sword(tensor([[0.0, 0.0, 0.0, 1.0]]), tensor([[-0.9, 0.4, 0.1]]), low, high)
    exp_map = rot.quat_to_exp_map(turn)[0].numpy()
    assert (exp_map <= high).all() and (exp_map >= low).all()
    assert np.abs(exp_map / high).max() > 0.96


def test_planned_feet(fighter):
    """Feet stand flat but for their steps, which end where told; a step clears the ground."""
    step = Step(LEFT, 0.2, 0.5, 0.6, 0.2, 0.3)
    feet = walk_feet(STANCE, [step], 61, 60.0, fighter.shape)
    middle = soles(feet, fighter.shape)
    assert (middle[:, RIGHT] - tensor([STANCE[RIGHT][0], STANCE[RIGHT][1], 0.0])).abs().max() < 1e-9
    assert (middle[-1, LEFT] - tensor([0.6, 0.2, 0.0])).abs().max() < 1e-9
    assert abs(rot.heading(feet.rot[-1, LEFT]).item() - 0.3) < 1e-9
    low = fighter.shape.sole_heights(feet.pos, feet.rot)
    assert low.min() > -1e-9 and low[:, LEFT].max() > 0.04


# -- vaults ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=sorted(VAULTS))
def vaulted(request):
    """(vault, shape, clip, boxes, motion and body poses in the run's frame)."""
    vault = VAULTS[request.param]
    shape = Shape(ASSETS / CHARACTERS[vault.char])
    clip = load_motion(ROOT / "data/motions" / vault.char / f"{vault.out}.pkl")
    motion = unpack(clip, shape)
    turn = rot.yaw_quat(tensor(-vault.heading))
    motion = Motion(rot.quat_rotate(turn, motion.root_pos), rot.quat_mul(turn, motion.root_rot), motion.joint_rot,
                    motion.fps, motion.loops)
    boxes = [in_run_frame(box, vault.heading) for box in read_boxes(ROOT / f"data/envs/{vault.env}.yaml")]
    return vault, shape, clip, boxes, motion, *shape.kinematics(motion)


def test_vault_is_sound(vaulted):
    _, shape, clip, *_ = vaulted
    report = measure(clip, shape)
    assert clip.loop_mode is LoopMode.CLAMP
    assert problems(report) == []
    assert report.max_speed < 20.0


def test_vault_goes_over_the_boxes_of_its_env(vaulted):
    """From before the first box to behind the last one, within their width, and through none of them."""
    _, shape, _, boxes, motion, pos, turn = vaulted
    first, last = boxes[0].centre[0] - boxes[0].half[0], boxes[-1].centre[0] + boxes[-1].half[0]
    assert motion.root_pos[0, 0] < first - 0.5 and motion.root_pos[-1, 0] > last + 0.5
    for box in boxes:
        over = (motion.root_pos[:, 0] - box.centre[0]).abs() < box.half[0]
        assert over.any()
        assert ((motion.root_pos[over, 1] - box.centre[1]).abs() < box.half[1]).all()
    ground, depth = Bodies(shape).depth(pos, turn, boxes)
    assert ground.max() < 0.01 and depth.max() < 0.01


def test_hands_rest_on_the_box(vaulted):
    vault, shape, _, boxes, motion, pos, turn = vaulted
    for hold in vault.holds:
        name, point, radius = vault.hand[hold.side]
        body = shape.character.model.body_index(name)
        at = slice(vault.approach + hold.first, vault.approach + hold.last + 1)
        hand = pos[at, body] + rot.quat_rotate(turn[at, body], tensor(point))
        gap = boxes[hold.box].distance(hand) - radius
        assert gap.abs().max() < 0.02
        assert torch.diff(hand[1:-1], dim=0).norm(dim=-1).max() * motion.fps < 0.4
        assert (hand[:, 2] > boxes[hold.box].top).all()


def test_flight_obeys_gravity(vaulted):
    """Nothing touched: the centre of mass falls with g; hands on the box: it is never pulled down, nor thrown up."""
    vault, shape, _, boxes, motion, pos, turn = vaulted
    com = Bodies(shape).centre_of_mass(pos, turn)
    pull = (com[2:] - 2 * com[1:-1] + com[:-2]) * motion.fps ** 2
    pull = torch.nn.functional.pad(pull, (0, 0, 1, 1))
    for first, last in vault.flights:
        flight = pull[vault.approach + first:vault.approach + last + 1]
        if len(flight) < 3:
            continue
        assert (flight[:, 2].mean() + GRAVITY).abs() < 1.2
        assert flight[:, :2].mean(0).norm() < 1.0
    for hold in vault.holds:
        push = pull[vault.approach + hold.first + 2:vault.approach + hold.last - 1, 2]
        assert push.mean() > -GRAVITY + 2.0 and push.max() < 15.0
    assert (torch.diff(com[:, 0]) * motion.fps).min() > 0.5
    outline, radius = Bodies(shape).outline(pos, turn), Bodies(shape).radius
    for first, last in vault.flights:
        at = slice(vault.approach + first + 1, vault.approach + last)
        gaps = torch.stack([box.distance(outline[at]) - radius for box in boxes]).amin(0).minimum(
            outline[at, :, 2] - radius)
        assert len(gaps) < 3 or gaps.amin(1).max() > 0.01


def test_legs_pass_above(vaulted):
    """Whatever part of a leg is over a box, is above it."""
    _, shape, _, boxes, _, pos, _ = vaulted
    for box in boxes:
        feet = pos[:, shape.feet]
        inside = ((feet[..., 0] - box.centre[0]).abs() < box.half[0]) & (
            (feet[..., 1] - box.centre[1]).abs() < box.half[1])
        assert inside.any(0).all(), "both feet go over the box"
        assert (feet[..., 2][inside] > box.top).all()


def test_boxes_of_the_env():
    (box,) = read_boxes(ROOT / "data/envs/vault_humanoid_env.yaml")
    assert box.centre == (2.2, 0.5, 0.2) and box.half == (0.2, 1.0, 0.3)
    assert abs(box.top - 0.5) < 1e-12
    turned = in_run_frame(box, math.pi)
    assert np.allclose(turned.centre, (-2.2, -0.5, 0.2))


def test_unknown_vault(capsys):
    assert author_vault.main(["humanoids"]) == 2
    text = capsys.readouterr().err
    assert "'humanoids'" in text and "known are humanoid, g1" in text


# -- trajectory optimisation -----------------------------------------------------------------------------------------

def test_distance_to_a_box():
    box = Box((1.0, 0.0, 0.5), (0.5, 1.0, 0.5))
    points = tensor([[1.0, 0.0, 1.25], [1.0, 0.0, 0.9], [1.8, 0.0, 1.4], [0.4, 0.0, 0.5]])
    assert torch.allclose(box.distance(points), tensor([0.25, -0.1, 0.5, 0.1]))


def test_splines_add_up_to_one():
    basis = spline_basis(23, 4)
    assert torch.allclose(basis.sum(1), torch.ones(23, dtype=torch.float64))
    assert torch.allclose(basis[4, :4], tensor([0.0, 1 / 6, 2 / 3, 1 / 6]))


def test_point_masses_have_the_inertia(fighter):
    """Sum of m (|r|^2 - r_i^2) over a body's six points: its moments of inertia."""
    bodies = Bodies(fighter.shape)
    model = mujoco.MjModel.from_xml_path(str(fighter.model.file))
    shield = bodies.mass_body == fighter.model.body_index("shield")
    places = bodies.mass_place[shield] - tensor(model.body("shield").ipos)
    mass = model.body("shield").mass[0]
    total = (places.square().sum() - places.square().sum(0)) * mass / 6
    assert torch.allclose(total.sort().values, tensor(np.sort(model.body("shield").inertia)), rtol=1e-6)
    assert abs(bodies.mass[shield].sum().item() - mass / model.body_subtreemass[0]) < 1e-9


def test_optimisation_moves_a_hand_onto_a_box_and_lets_the_body_fall():
    """From a motionless pose in the air: the left hand is led onto a box while the body, with it, falls and sinks."""
    shape = Shape(ASSETS / CHARACTERS["humanoid"])
    frames, fps = 13, 60.0
    still = Motion(tensor([[0.0, 0.0, 1.6]]).repeat(frames, 1), tensor([[0.0, 0.0, 0.0, 1.0]]).repeat(frames, 1),
                   unpack(MotionClip(LoopMode.CLAMP, fps, np.zeros((frames, 34), dtype=np.float32)), shape).joint_rot,
                   fps, False)
    hand = shape.character.model.body_index("left_hand")
    box = Box((0.0, 0.75, 1.55), (0.3, 0.3, 0.3))
    falls = torch.zeros(frames, dtype=torch.bool)
    falls[:5] = True
    target = tensor([0.05, 0.65, box.top + 0.04])
    task = Task(still, [Contact(hand, torch.zeros(3, dtype=torch.float64), target, 9, 12)], [box], falls, ~falls,
                torch.full((frames,), 0.1, dtype=torch.float64))
    found = optimise(task, shape, 50)
    pos, turn = shape.kinematics(found)
    assert (pos[9:, hand] - target).norm(dim=-1).max() < 0.01
    bodies = Bodies(shape)
    com = bodies.centre_of_mass(pos, turn)
    pull = (com[2:] - 2 * com[1:-1] + com[:-2])[:3, 2] * fps ** 2
    assert (pull + GRAVITY).abs().max() < 1.0
    assert bodies.depth(pos, turn, [box])[1].max() < 0.005


def test_guard_is_within_reach(fighter):
    """The pose that everything begins and ends with is reached exactly."""
    shoulder, elbow = reach(fighter.shape, "right", tensor([GUARD.sword_hand]), tensor([GUARD.sword_elbow]))
    model = fighter.model
    start = tensor(model.local_pos[model.body_index("right_upper_arm")])
    upper, lower = (tensor(model.local_pos[model.body_index(f"right_{part}")]) for part in ("lower_arm", "hand"))
    hand = start + rot.quat_rotate(shoulder, upper + rot.quat_rotate(elbow, lower))
    assert (hand - tensor([GUARD.sword_hand])).norm() < 1e-6

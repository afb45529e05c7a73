"""The fused solve and the lean step against the solver package: rows of every kind, all characters, objects."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import mujoco
import mujoco_warp as mjw
import numpy as np
import pytest
import torch
import warp as wp
from mujoco_warp._src import solver as package

from mimickit.engines import newton_lean, newton_solve
from mimickit.engines.engine import FreeObject, StaticObject, WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.engines.newton_engine import NewtonEngine

pytestmark = pytest.mark.sim

ASSETS = Path(__file__).resolve().parents[2] / "data" / "assets"
CHARACTERS = {"humanoid": "humanoid/humanoid.xml", "g1": "g1/g1.xml", "go2": "go2/go2.xml", "smpl": "smpl/smpl.xml",
              "pi_plus": "hightorque_pi_plus/pi_22dof.xml", "sword_shield": "sword_shield/humanoid_sword_shield.xml"}
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
N = 6  # worlds

# contacts, a limit, dry friction and two equalities, more than a lane has of each
ROWS = """<mujoco><option timestep="0.004" cone="pyramidal" integrator="implicitfast" jacobian="{jacobian}"/>
<worldbody><geom type="plane" size="5 5 1"/>{chains}</worldbody>
<equality><connect body1="a0" body2="a1" anchor="0 0 0"/><weld body1="b2" body2="b3"/></equality></mujoco>"""
CHAIN = """<body name="a{i}" pos="{x} 0 0.12"><freejoint/><geom type="box" size="0.1 0.1 0.1" density="400"/>
<body name="b{i}" pos="0.2 0 0"><joint name="h{i}" axis="0 1 0" range="-0.2 0.2" limited="true" frictionloss="0.4"
 armature="0.01"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.05" density="400"/>
<body pos="0.3 0 0"><joint axis="0 0 1" frictionloss="1.5" armature="0.01"/>
<geom type="sphere" size="0.08" density="400"/></body></body></body>"""


def results(d: mjw.Data) -> dict[str, np.ndarray]:
    rows = {"force": d.efc.force, "state": d.efc.state}
    found = {name: array.numpy().copy() for name, array in rows.items()}
    for w, nefc in enumerate(d.nefc.numpy()):
        for name in rows:
            found[name][w, nefc:] = 0
    return found | {name: getattr(d, name).numpy().copy() for name in ("qacc", "qfrc_constraint", "solver_niter")} | {
        "Ma": d.efc.Ma.numpy().copy()}


def dense(m: mjw.Model, d: mjw.Data, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Inertia [V, V] and Jacobian [R, V] of a world."""
    M, values = np.zeros((m.nv, m.nv)), d.M.numpy()[w]
    M[m.M_hinit_i.numpy(), m.M_colind.numpy()] = M[m.M_colind.numpy(), m.M_hinit_i.numpy()] = values
    nefc = d.nefc.numpy()[w]
    if not m.is_sparse:
        return M, d.efc.J.numpy()[w, :nefc, :m.nv].astype(float)
    J = np.zeros((nefc, m.nv))
    for row, (adr, n) in enumerate(zip(d.efc.J_rowadr.numpy()[w, :nefc], d.efc.J_rownnz.numpy()[w, :nefc])):
        J[row, d.efc.J_colind.numpy()[w, 0, adr:adr + n]] = d.efc.J.numpy()[w, 0, adr:adr + n]
    return M, J


def cost(m: mjw.Model, d: mjw.Data, w: int, x: np.ndarray) -> float:
    """What the solve minimises, in float64, in units of its tolerance's scale."""
    M, J = dense(m, d, w)
    x, nefc, ne, nf = x.astype(float), d.nefc.numpy()[w], d.ne.numpy()[w], d.nf.numpy()[w]
    D, r = d.efc.D.numpy()[w, :nefc].astype(float), J @ x - d.efc.aref.numpy()[w, :nefc]
    each = 0.5 * D * np.where(np.arange(nefc) < ne, r, np.minimum(r, 0.0)) ** 2
    dry = slice(ne, ne + nf)
    f = d.efc.frictionloss.numpy()[w, dry].astype(float)
    bound = np.minimum(f / D[dry], np.abs(r[dry]))
    each[dry] = 0.5 * D[dry] * bound ** 2 + f * (np.abs(r[dry]) - bound)
    return float(0.5 * x @ M @ x - x @ d.qfrc_smooth.numpy()[w] + each.sum()) / np.trace(M)


class Comparison:
    """Called in place of the package's solve: one time in five also solves fused, and notes what differs.

    Single precision limits both to the same distance from the optimum, so what is allowed is what the package itself
    answers to a warm start that differs in the last bits; the cost may lie above the package's by a part of the
    solver's tolerance, at which either stops.
    """

    def __init__(self) -> None:
        self.package, self.calls = package.solve, 0
        self.states: set[int] = set()
        self.most_iterations = self.most_rows = 0
        self.tolerance = 0.0
        self.found: dict[str, list[float]] = {name: [] for name in ("ours", "floor", "our excess")}
        self.flips: list[float] = []
        self.more_iterations: list[float] = []

    def __call__(self, m: mjw.Model, d: mjw.Data) -> None:
        self.calls += 1
        if self.calls % 5:
            self.package(m, d)
            return
        warm_start = d.qacc_warmstart.numpy().copy()
        noise = np.random.default_rng(0).normal(0.0, 1e-7, warm_start.shape)
        d.qacc_warmstart.assign((warm_start * (1.0 + noise)).astype(np.float32))
        self.package(m, d)
        floor = results(d)
        d.qacc_warmstart.assign(warm_start)
        self.package(m, d)
        theirs = results(d)
        for array in (d.qacc, d.qfrc_constraint, d.efc.Ma, d.efc.force):
            array.fill_(np.nan)
        d.efc.state.fill_(-1)
        d.solver_niter.fill_(-1)
        newton_solve.solve(m, d)
        self.note(m, d, results(d), theirs, floor)

    def note(self, m: mjw.Model, d: mjw.Data, ours: dict, theirs: dict, floor: dict) -> None:
        self.tolerance = m.opt.tolerance.numpy().max()
        self.states |= set(theirs["state"].ravel().tolist())
        self.most_iterations = max(self.most_iterations, theirs["solver_niter"].max())
        self.most_rows = max(self.most_rows, (theirs["force"] != 0).sum(1).max())
        self.flips.append(np.mean(ours["state"] != theirs["state"]))
        self.more_iterations.append(np.mean(ours["solver_niter"] - theirs["solver_niter"]))
        for w in range(d.nworld):
            x, size, least = theirs["qacc"][w], np.abs(theirs["qacc"][w]).max(), cost(m, d, w, theirs["qacc"][w])
            for name, other in (("ours", ours), ("floor", floor)):
                self.found[name].append(np.abs(other["qacc"][w] - x).max() / (1.0 + size))
            self.found["our excess"].append((cost(m, d, w, ours["qacc"][w]) - least) / (1.0 + abs(least)))
            M, J = dense(m, d, w)
            rows = d.efc.D.numpy()[w, :len(J)] * np.abs(d.efc.aref.numpy()[w, :len(J)])
            sums = 1.0 + np.abs(M).dot(np.abs(ours["qacc"][w])).max() + np.abs(J.T).dot(rows).max()
            np.testing.assert_allclose(ours["Ma"][w], M @ ours["qacc"][w], atol=1e-5 * sums)
            np.testing.assert_allclose(ours["qfrc_constraint"][w], J.T @ ours["force"][w, :len(J)], atol=1e-5 * sums)

    def check(self) -> None:
        assert np.mean(self.flips) < 1e-3 and np.abs(np.mean(self.more_iterations)) < 0.05
        ours, floor = np.array(self.found["ours"]), np.array(self.found["floor"])
        assert np.median(ours) < 3.0 * np.median(floor)
        assert np.quantile(ours, 0.99) < 30.0 * np.quantile(floor, 0.99)
        excess = np.array(self.found["our excess"])  # nearer to the optimum is welcome
        assert excess.max() < self.tolerance and excess.mean() < 1e-3 * self.tolerance
        assert np.quantile(excess, 0.99) < 0.05 * self.tolerance


@pytest.mark.parametrize("jacobian", ["sparse", "dense"])
def test_rows_of_every_kind_are_solved_as_the_package_does(jacobian) -> None:
    chains = "".join(CHAIN.format(i=i, x=0.7 * i) for i in range(5))
    model = mujoco.MjModel.from_xml_string(ROWS.format(jacobian=jacobian, chains=chains))
    with wp.ScopedDevice(DEVICE):
        m = mjw.put_model(model)
        d = mjw.make_data(model, nworld=N, nconmax=60, njmax=300)
        m.opt.warn_overflow = 0
        generator = np.random.default_rng(0)
        d.qvel.assign(generator.normal(0.0, 2.0, (N, model.nv)).astype(np.float32))
        assert newton_solve.refusal(m, d) is None and m.is_sparse == (jacobian == "sparse")
        comparison = Comparison()
        with mock.patch.object(package, "solve", comparison):
            for _ in range(30):
                mjw.step(m, d)
    assert comparison.states == {0, 1, 2, 3}  # satisfied, quadratic, and both ends of dry friction
    assert d.ne.numpy().min() > 0 and d.nf.numpy().min() > 0 and d.nefc.numpy().max() > 40
    assert comparison.most_iterations > 4
    comparison.check()


def world(name: str, **settings) -> NewtonEngine:
    config = EngineConfig(engine_name="newton", control_mode="pos", control_freq=30, sim_freq=240, env_spacing=5,
                          **settings)
    objects = {"static": (StaticObject(ASSETS / "objects" / "vault_box.xml", (0.6, 0.0, 0.0)),),
               "free": (FreeObject(ASSETS / "objects" / "dodgeball.xml", (0.0, 0.0, 2.5)),)}
    spec = WorldSpec(ASSETS / CHARACTERS.get(name, CHARACTERS["humanoid"]), init_root_pos=(0.0, 0.0, 1.0),
                     objects=objects["static"] if name == "boxes" else (),
                     free_objects=objects["free"] if name == "balls" else ())
    return NewtonEngine(spec, config, N, DEVICE)


def throw(engine: NewtonEngine, seed: int) -> None:
    """Worlds start above the ground, turned and moving, under targets that fold them up."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    engine.root_pos.copy_(torch.tensor([0.0, 0.0, 0.7]).expand(N, 3))
    engine.root_rot.copy_(torch.nn.functional.normalize(normal(N, 4), dim=-1))
    engine.root_vel.copy_(2.0 * normal(N, 3))
    engine.root_ang_vel.copy_(3.0 * normal(N, 3))
    engine.dof_pos.copy_(0.3 * normal(N, engine.num_dofs))
    engine.dof_vel.zero_()
    engine.command.copy_(1.5 * normal(N, engine.num_dofs))
    engine.reset_mask.fill_(True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHARACTERS, "boxes", "balls"])
def test_characters_are_solved_as_the_package_does(name) -> None:
    engine = world(name)
    m, d = engine.solver.mjw_model, engine.solver.mjw_data
    assert newton_solve.refusal(m, d) is None
    comparison = Comparison()
    with mock.patch.object(package, "solve", comparison):
        for seed in range(2):
            throw(engine, seed)
            for _ in range(8):
                engine._control_step(engine.config.substeps)
    assert comparison.most_iterations > 4 and comparison.most_rows > 8
    comparison.check()


@pytest.mark.parametrize("name", [*CHARACTERS, "boxes", "balls", "crowded"])
def test_lean_steps_are_the_same_to_the_bit(name) -> None:
    trajectories, capacity = [], {"njmax": 16, "nconmax": 3} if name == "crowded" else {}
    for lean in (False, True, False):
        engine = world(name, lean_steps=lean, **capacity)
        assert lean == (engine._lean is not None and len(engine._lean._idle) >= 10)
        throw(engine, 0)
        states = []
        for _ in range(10):
            engine.step()
            states.append(torch.cat([value.flatten().double() for value in engine.state_dict().values()]))
        trajectories.append(torch.stack(states))
        assert torch.isfinite(trajectories[-1]).all() and engine.contact_force.any()
        assert engine.overflow.all() == (name == "crowded")
        if DEVICE == "cpu" and lean:
            assert torch.equal(*trajectories)
            return
    early, lean, again = (trajectory[:2] for trajectory in trajectories)  # a GPU adds in any order
    ours, floor = (((other - early).abs() / (1.0 + early.abs())).quantile(0.95) for other in (lean, again))
    assert ours < 5.0 * floor + 1e-5


def test_another_version_of_the_package_is_left_alone() -> None:
    engine = world("humanoid")
    m, d = engine.solver.mjw_model, engine.solver.mjw_data
    solve = package.solve
    with newton_solve.fused_solve(m, d):
        assert package.solve is newton_solve.solve
    with mock.patch.object(newton_solve, "WRITTEN_FOR", "3.16.0"):
        assert "3.16.0" in newton_solve.refusal(m, d)
        assert newton_lean.lean_steps(m, d, False) is None
        with newton_solve.fused_solve(m, d):
            assert package.solve is solve


def test_fused_lean_steps_pass_through_the_captured_graph() -> None:
    """A standing character, whose contacts all worlds share: graph and settings end where the package ends."""
    ends = []
    for settings in ({}, {"fused_solve": True, "lean_steps": True}):
        engine = world("humanoid", **settings)
        with mock.patch.object(newton_solve, "solve", side_effect=AssertionError("captured, not launched")):
            for _ in range(10):
                engine.step()
        ends.append(engine.body_pos.clone())
        assert engine.ground_contact_force.any()
    torch.testing.assert_close(*ends, atol=2e-4, rtol=0.0)
    assert not torch.equal(*ends)


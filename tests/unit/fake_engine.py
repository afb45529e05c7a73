"""An engine without physics: dofs jump to the command, the root moves at its velocity, nothing touches anything.

It honours the contract of ``mimickit/engines/engine.py`` so that the logic of environments is tested in milliseconds.
"""

from __future__ import annotations

import torch

from mimickit.anim.character import Character
from mimickit.engines.engine import WorldSpec
from mimickit.engines.engine_config import EngineConfig, make_engine_config

STATE = ("root_pos", "root_rot", "root_vel", "root_ang_vel", "dof_pos", "dof_vel")
OUTPUT = ("body_pos", "body_rot", "body_vel", "body_ang_vel", "contact_force", "ground_contact_force")


def engine_config(**changes) -> EngineConfig:
    base = {"engine_name": "newton", "control_mode": "pos", "control_freq": 30, "sim_freq": 240, "env_spacing": 5}
    return make_engine_config(base | changes, "test")


class FakeEngine:
    def __init__(self, spec: WorldSpec, config: EngineConfig, num_envs: int, device="cpu"):
        self.spec, self.config = spec, config
        self.device = torch.device(device)
        self.character = Character.load(spec.char_file, device)
        self.num_envs, self.num_dofs = num_envs, self.character.num_dofs
        self.control_dt, self.sim_dt = 1.0 / config.control_freq, 1.0 / config.sim_freq
        self.body_names = self.character.body_names
        self.total_mass = 50.0
        n, b, d = num_envs, len(self.body_names), self.num_dofs
        shapes = {
            "root_pos": (n, 3), "root_rot": (n, 4), "root_vel": (n, 3), "root_ang_vel": (n, 3),
            "dof_pos": (n, d), "dof_vel": (n, d), "body_pos": (n, b, 3), "body_rot": (n, b, 4), "body_vel": (n, b, 3),
            "body_ang_vel": (n, b, 3), "contact_force": (n, b, 3), "ground_contact_force": (n, b, 3), "command": (n, d),
        }
        for name, shape in shapes.items():
            setattr(self, name, torch.zeros(shape, device=device))
        self.root_pos += torch.tensor(spec.init_root_pos)
        self.root_rot += torch.tensor(spec.init_root_rot)
        self.reset_mask = torch.zeros(n, dtype=torch.bool, device=device)
        self.overflow = torch.zeros(2, dtype=torch.int64, device=device)
        self.calls = []  # what was asked of the engine, in order
        self.started = []  # worlds that restarted, per step
        self._kinematics()

    def step(self):
        self.calls.append("step")
        self._restart()
        if not self.spec.fixed_root:
            self.root_pos += self.root_vel * self.control_dt
        if self.spec.motors:
            self.dof_pos.copy_(self.command)
        self.contact_force.zero_()
        self.ground_contact_force.zero_()
        self._kinematics()

    def flush(self):
        self.calls.append("flush")
        self._restart()
        self._kinematics()

    def _restart(self):
        self.started.append(self.reset_mask.nonzero().flatten().tolist())
        self.reset_mask.zero_()

    def _kinematics(self):
        poses = self.character.forward_kinematics(
            self.root_pos, self.root_rot, self.character.dof_to_rot(self.dof_pos)
        )
        self.body_pos.copy_(poses[0])
        self.body_rot.copy_(poses[1])

    def clear_overflow(self):
        self.overflow.zero_()

    def state_dict(self):
        return {name: getattr(self, name).clone() for name in (*STATE, *OUTPUT, "command", "reset_mask", "overflow")}

    def load_state_dict(self, state):
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def close(self):
        self.calls.append("close")

"""An engine without physics: characters stay where they are put. For what is moved by hand, and for tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.engines.engine import WorldSpec
from mimickit.engines.engine_config import EngineConfig

STATE = ("root_pos", "root_rot", "root_vel", "root_ang_vel", "dof_pos", "dof_vel")
OUTPUT = ("body_pos", "body_rot", "body_vel", "body_ang_vel", "contact_force", "ground_contact_force")


class StillEngine:
    """The contract of ``mimickit/engines/engine.py``; a step only takes over what was placed."""

    total_mass = 50.0

    def __init__(
        self, spec: WorldSpec, config: EngineConfig, num_envs: int, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.config = spec, config
        self.device = torch.device(device)
        self.character = Character.load(spec.char_file, self.device)
        self.num_envs, self.num_dofs = num_envs, self.character.num_dofs
        self.control_dt, self.sim_dt = 1.0 / config.control_freq, 1.0 / config.sim_freq
        self.body_names = self.character.body_names
        n, b, d = num_envs, len(self.body_names), self.num_dofs
        shapes = {
            "root_pos": (n, 3), "root_rot": (n, 4), "root_vel": (n, 3), "root_ang_vel": (n, 3),
            "dof_pos": (n, d), "dof_vel": (n, d), "body_pos": (n, b, 3), "body_rot": (n, b, 4), "body_vel": (n, b, 3),
            "body_ang_vel": (n, b, 3), "contact_force": (n, b, 3), "ground_contact_force": (n, b, 3), "command": (n, d),
        }
        if objects := len(spec.free_objects):
            shapes |= {f"object_{name}": (n, objects, 3) for name in ("pos", "vel", "force")}
            self.object_mask = torch.zeros(n, objects, dtype=torch.bool, device=self.device)
        if spec.varied:
            shapes |= {"previous_command": (n, d), "ground_shift": (n, 2), "com": (n, 3)}
            self.delay = torch.zeros(n, dtype=torch.int32, device=self.device)
            for name, shape in (("friction", (n,)), ("strength", (n,)), ("stiffness", (n, d)), ("damping", (n, d)),
                                ("mass", (n, b))):
                setattr(self, name, torch.ones(shape, device=self.device))
        for name, shape in shapes.items():
            setattr(self, name, torch.zeros(shape, device=self.device))
        self.root_pos += torch.tensor(spec.init_root_pos, device=self.device)
        self.root_rot += torch.tensor(spec.init_root_rot, device=self.device)
        self.reset_mask = torch.zeros(n, dtype=torch.bool, device=self.device)
        self.overflow = torch.zeros(2, dtype=torch.int64, device=self.device)
        self._kinematics()

    def step(self) -> None:
        self.flush()

    def flush(self) -> None:
        self.reset_mask.zero_()

    def set_masses(self) -> None:
        """There are no masses."""

    def clear_overflow(self) -> None:
        self.overflow.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in (*STATE, *OUTPUT, "command", "reset_mask", "overflow")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def close(self) -> None:
        """There is nothing to release."""

    def _kinematics(self) -> None:
        body_pos, body_rot = self.character.forward_kinematics(
            self.root_pos, self.root_rot, self.character.dof_to_rot(self.dof_pos))
        self.body_pos.copy_(body_pos)
        self.body_rot.copy_(body_rot)

"""An engine without physics: dofs jump to the command, the root moves at its velocity, nothing touches anything.

It honours the contract of ``mimickit/engines/engine.py`` so that the logic of environments is tested in milliseconds.
"""

from __future__ import annotations

from mimickit.engines.engine import WorldSpec
from mimickit.engines.engine_config import EngineConfig, make_engine_config
from mimickit.envs.still_engine import OUTPUT, STATE, StillEngine

__all__ = ["OUTPUT", "STATE", "FakeEngine", "engine_config"]


def engine_config(**changes) -> EngineConfig:
    base = {"engine_name": "newton", "control_mode": "pos", "control_freq": 30, "sim_freq": 240, "env_spacing": 5}
    return make_engine_config(base | changes, "test")


class FakeEngine(StillEngine):
    def __init__(self, spec: WorldSpec, config: EngineConfig, num_envs: int, device="cpu"):
        self.calls = []  # what was asked of the engine, in order
        self.started = []  # worlds that restarted, per step
        super().__init__(spec, config, num_envs, device)

    def step(self):
        self.calls.append("step")
        self._restart()
        if not self.spec.fixed_root:
            self.root_pos += self.root_vel * self.control_dt
        if self.spec.free_objects:
            self.object_mask.zero_()
            self.object_pos += self.object_vel * self.control_dt
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

    def close(self):
        self.calls.append("close")

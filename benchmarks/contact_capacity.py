"""How many contacts and constraint rows a character ever needs: the numbers behind data/engines/contact_capacity.yaml.

    python benchmarks/contact_capacity.py --chars data/assets/g1/g1.xml data/assets/go2/go2.xml --num-envs 4096

Worlds start every 100 control steps 0.5 to 1.5 m above the ground with random rotation, velocity (3 m/s) and spin
(4 rad/s per axis) and random joints (0.5 rad per dof), under random position targets (0, 0.5 or 1.5 rad per dof, new
ones every 3 steps). After every step the largest number of rows and of contacts of one world is noted. Results are
appended as JSON lines (with versions, machine, date) to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from mimickit.anim.mjcf import load_character_model  # noqa: E402
from mimickit.engines.engine_config import DEFAULT_ENGINE_FILE, load_engine_config  # noqa: E402
from mimickit.request_reader import machine_devices  # noqa: E402
from mimickit.util.failures import (  # noqa: E402
    EXIT_OK,
    UserError,
    explains_mistakes,
)

RESTART_STEPS, TARGET_STEPS = 100, 3
RESERVED = {"njmax": 450, "nconmax": 150}


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chars", nargs="+", type=Path, default=[Path("data/assets/humanoid/humanoid.xml")],
                        metavar="XML", help="character files, MJCF (data/assets/humanoid/humanoid.xml)")
    parser.add_argument("--num-envs", type=int, default=32, metavar="N", help="worlds, at least 1 (32)")
    parser.add_argument("--steps", type=int, default=700, metavar="N", help="control steps, at least 1 (700)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu",
                        help="cpu or cuda:N (cuda:0, without a GPU cpu)")
    parser.add_argument("--engine-config", default=DEFAULT_ENGINE_FILE, metavar="YAML",
                        help=f"physics; its njmax and nconmax are not used ({DEFAULT_ENGINE_FILE})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines file to append to (none)")
    options = parser.parse_args(argv)
    check(options)
    from mimickit import run

    print(f"{'character':24}{'rows':>6}{'99 %':>6}{'contacts':>10}{'99 %':>6}   x 1.5: njmax, nconmax   dropped")
    for char in options.chars:
        row = measure(char, options)
        reserve = [math.ceil(1.5 * row[name]) for name in ("rows", "contacts")]
        print(f"{row['character']:24}{row['rows']:6}{row['rows_p99']:6}{row['contacts']:10}{row['contacts_p99']:6}"
              f"   {reserve[0]:10}{reserve[1]:10}   {row['dropped']}", flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps({**row, "versions": run.versions(), "date": date.today().isoformat()}) + "\n")
    return EXIT_OK


def check(options: argparse.Namespace) -> None:
    """Raise UserError, or OSError for ``--out``, before anything is measured."""
    for option, number in (("--num-envs", options.num_envs), ("--steps", options.steps)):
        if number < 1:
            raise UserError(f"{option} {number}: at least 1")
    if options.device not in (here := machine_devices()):
        raise UserError(f"--device {options.device}: this machine has {', '.join(here)}")
    load_engine_config(options.engine_config)
    for char in options.chars:
        load_character_model(char)
    if options.out:
        options.out.open("a").close()


def measure(char: Path, options: argparse.Namespace) -> dict:
    """Peaks over all worlds and steps, 99th percentiles over steps of the largest world."""
    import warp as wp

    from mimickit.engines.engine import WorldSpec
    from mimickit.engines.newton_engine import NewtonEngine

    torch.manual_seed(0)
    engine = NewtonEngine(
        WorldSpec(char), load_engine_config(options.engine_config, RESERVED), options.num_envs, options.device)
    data = engine.solver.mjw_data
    rows_of, count_of, world_of = (wp.to_torch(x) for x in (data.nefc, data.nacon, data.contact.worldid))
    slots = torch.arange(len(world_of), device=engine.device)
    rows, contacts = [], []
    for step in range(options.steps):
        if step % RESTART_STEPS == 0:
            throw(engine)
        if step % TARGET_STEPS == 0:
            size = torch.tensor([0.0, 0.5, 1.5], device=engine.device)[
                torch.randint(3, (engine.num_envs, 1), device=engine.device)]
            engine.command.copy_(size * torch.randn_like(engine.command))
        engine.step()
        per_world = torch.zeros(engine.num_envs + 1, dtype=torch.int64, device=engine.device)
        world = torch.where(slots < count_of, world_of.long(), engine.num_envs)  # unused slots to the extra entry
        per_world.scatter_add_(0, world, torch.ones_like(world))
        rows.append(rows_of.max())
        contacts.append(per_world[:-1].max())
    rows, contacts = torch.stack(rows).float(), torch.stack(contacts).float()
    result = {
        "character": char.stem, "num_envs": options.num_envs, "steps": options.steps,
        "rows": int(rows.max()), "rows_p99": int(rows.quantile(0.99)),
        "contacts": int(contacts.max()), "contacts_p99": int(contacts.quantile(0.99)),
        "dropped": engine.overflow.tolist(), "finite": bool(torch.isfinite(engine.root_pos).all()),
        "machine": torch.cuda.get_device_name() if engine.device.type == "cuda" else "CPU",
    }
    engine.close()
    return result


def throw(engine) -> None:
    """Restart all worlds above the ground in random motion."""
    n = engine.num_envs
    like = engine.root_pos
    engine.root_pos.copy_(torch.cat([torch.zeros_like(like[:, :2]), 0.5 + torch.rand_like(like[:, :1])], dim=1))
    engine.root_rot.copy_(torch.nn.functional.normalize(torch.randn_like(engine.root_rot), dim=-1))
    engine.root_vel.copy_(3.0 * torch.randn_like(like))
    engine.root_ang_vel.copy_(4.0 * torch.randn_like(like))
    engine.dof_pos.copy_(0.5 * torch.randn_like(engine.dof_pos))
    engine.dof_vel.zero_()
    engine.reset_mask.copy_(torch.ones(n, dtype=torch.bool, device=engine.device))


if __name__ == "__main__":
    sys.exit(main())

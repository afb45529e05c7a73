"""The commands ``mimickit export`` and ``mimickit sim2sim``."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimickit.config import build, load_yaml
from mimickit.deploy import policy_file
from mimickit.util.args import Args
from mimickit.util.failures import UserError
from mimickit.util.files import write_json
from mimickit.util.logging import Heartbeat
from mimickit.util.measures import with_units
from mimickit.util.versions import versions

if TYPE_CHECKING:
    from mimickit.deploy.policy_file import PolicyFile
    from mimickit.envs.disturbance_config import Disturbances

PACKAGES = {"export": ("onnx", "onnxruntime"), "sim2sim": ("onnxruntime",)}
MAX_PROCESSES = 8  # of sim2sim, where nobody says


def need(command: str) -> None:
    """Raises UserError naming the packages that a command needs and that are not installed."""
    if missing := [name for name in PACKAGES[command] if find_spec(name) is None]:
        raise UserError(f"mimickit {command}: not installed: {', '.join(missing)}; pip install 'mimickit[deploy]'")


def is_policy(target: str) -> bool:
    """Whether a target is an exported policy, not a run."""
    path = Path(target)
    return path.suffix == ".onnx" or path.name == policy_file.NAME or (path / policy_file.NAME).is_file()


def export(request: Any, folder: Path, overwrite: bool) -> PolicyFile:
    """Export the model of a request (:class:`mimickit.request.Request`).

    Raises:
        UserError: the folder holds a policy and ``overwrite`` is not given, or as :func:`export_policy`.
    """
    need("export")
    if (folder / policy_file.NAME).exists() and not overwrite:
        raise UserError(f"{folder} holds an exported policy; --overwrite replaces it, --out_dir names another folder")
    from mimickit.deploy.export import Source, export_policy

    model = Path(request.args["model_file"])
    known = _run_config(model)
    return export_policy(Source(request.env, request.engine, request.agent, model, known.get("commit"),
                                known.get("versions")), folder)


def _run_config(model: Path) -> dict[str, Any]:
    """What the run of a model file says about itself; nothing where it stands alone."""
    from mimickit.util.run_folder import source_folder

    file = source_folder(model.parent) / "run_config.yaml"
    return load_yaml(file) if file.is_file() else {}


def disturbances_of(args: Args, policy: Path) -> Disturbances:
    """Those of ``--disturb``; without it those that the policy was trained with."""
    from mimickit.deploy.policy_file import read_policy
    from mimickit.envs.disturbance_config import Disturbances, read_disturbances

    if args["disturb"] is not None:
        return read_disturbances(args["disturb"])
    known = read_policy(policy)[0].training.configuration["env"].get("disturbances", {})
    return build(Disturbances, known, f"{policy}: training.configuration.env.disturbances")


def sim2sim(args: Args, policy: Path, out_dir: Path) -> None:
    """Run, measure and film an exported policy; writes ``result.json`` and the film."""
    need("sim2sim")
    from mimickit.envs.disturbance_config import STANDARD, read_disturbances

    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported
    from mimickit.deploy import sim2sim as runner

    disturbances = disturbances_of(args, policy)
    if disturbances.given:
        print(f"disturbances: {disturbances.text}")
    seed, max_steps = args["rand_seed"], args["max_episode_steps"]
    if args["visualize"]:
        runner.show(policy, seed, max_steps, disturbances)
        return
    result_file = Path(args["result_file"] or out_dir / "result.json")
    processes = len(args["devices"] or ()) or min(MAX_PROCESSES, os.cpu_count() or 1)
    heartbeat = Heartbeat(out_dir, 0)
    result = runner.measure(policy, args["test_episodes"], seed, processes, max_steps, disturbances,
                            heartbeat.beat)
    if args["disturbed_episodes"]:
        more = runner.measure(policy, args["disturbed_episodes"], seed, processes, max_steps,
                              read_disturbances(STANDARD), heartbeat.beat)
        result["measures"]["survival_disturbed"] = more["measures"]["survival"]
        result["statistics"]["survival_disturbed"] = more["statistics"]["survival"]
    video = None
    if args["video"]:
        video = runner.film(policy, Path(args["video_file"] or out_dir / "viz.mp4"), args["video_width"],
                            args["video_height"], seed, max_steps, disturbances)
    write_json(result_file, {"mode": "sim2sim", "ok": True, **result, "disturbances": disturbances.given,
                             "video": video, "versions": versions()})
    print(f"Mean episode length: {result['test_episode_length']:.4g} control steps")
    print(f"Episodes: {result['test_episodes']}")
    print("\n".join(with_units(result["measures"], result["statistics"])))
    print(f"result: {result_file}" + (f"\nfilm: {video['file']}" if video else ""))

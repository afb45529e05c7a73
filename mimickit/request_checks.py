"""Checks of a request before an engine is built: do sizes fit, and do files belong to it?"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from mimickit.request import Request
from mimickit.util.args import Args
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import read_json

LOGGERS = {"tb": "tensorboardX", "wandb": "wandb"}  # --logger -> the package that it needs


def check_request(request: Request) -> None:
    """Raise UserError for what would fail, or learn nothing, once everything is built."""
    args = request.args
    if request.mode == "test":
        for flag, given in (("resume", "resume" in args), ("overwrite", args["overwrite"])):
            if given:
                raise UserError(f"--{flag} ({args.source[flag]}) is for --mode train; a test takes its policy from "
                                "--model_file")
        check_viewer(args)
    check_logger(args["logger"])
    check_motors(request)
    check_sizes(request)
    check_motion_prior(request)
    if request.mode == "train" and args["resume"] is not None:
        check_resume(request, Path(args["resume"]))
    if args["model_file"] is not None:
        check_model_file(request, Path(args["model_file"]))


def check_logger(kind: str) -> None:
    """Raises UserError if the package of ``--logger`` is not installed."""
    package = LOGGERS.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"--logger {kind} needs the package {package}: pip install {package}")


def check_viewer(args: Args) -> None:
    """Raises UserError if pages for browsers are asked for in two ways, or their package is not installed."""
    live, file = args["viewer"] == "web", args["save_html"]
    if live and file is not None:
        raise UserError(f"--web shows, --save_html {file} records: give one of them")
    wanted = "--web" if live else f"--save_html {file}" if file is not None else ""
    if wanted and importlib.util.find_spec("viser") is None:
        raise UserError(f"{wanted} needs the package viser: pip install 'mimickit[web]'")


def check_motors(request: Request) -> None:
    """Raises UserError if motors of position or velocity control have no gains: nothing would move."""
    from mimickit.anim.mjcf import load_character_model

    key = {"pos": "stiffness", "pd_explicit": "stiffness", "vel": "damping"}.get(request.engine.control_mode)
    if key is None or request.env.env_name == "view_motion":
        return
    model = load_character_model(request.env.char_file)
    gains = model.kp if key == "stiffness" else model.kd
    weak = [name for name, span in zip(model.joint_names, model.dof_slices, strict=True)
            if span.stop > span.start and not (gains[span] > 0.0).any()]
    if weak:
        convert = ("URDF has no stiffness: write an MJCF file (mimickit convert-urdf). "
                   if model.file.suffix.lower() == ".urdf" else "")
        raise UserError(
            f"{model.file}: no {key} at joint {', '.join(weak)}: control_mode {request.engine.control_mode} cannot "
            f"move them. {convert}Give their <joint> (or its <default>) stiffness= and damping= (N m/rad, N m s/rad), "
            f"or drive them by torque with the yaml keys engine: {{control_mode: torque}} in {request.env.source}")


def check_sizes(request: Request) -> None:
    """Raises UserError if worlds, minibatches and replay do not fit together."""
    from mimickit.learning.config import AdversarialConfig, check_eval_envs, check_replay

    agent, num_envs = request.agent, request.num_envs
    if request.mode == "train":
        check_eval_envs(request.args["eval_envs"], num_envs)
    if isinstance(agent, AdversarialConfig):
        check_replay(agent, num_envs)


def check_motion_prior(request: Request) -> None:
    """Raises UserError where the agent's motion prior knows other windows than the environment makes."""
    from mimickit.learning.config import SMPConfig

    if isinstance(request.agent, SMPConfig):
        from mimickit.prior import check_prior

        check_prior(request.agent, request.env, request.engine.control_freq)


def check_prior_is_trained(request: Request) -> None:
    """Raises AssetMissingError where a training needs the weights of a motion prior that nobody has trained."""
    from mimickit.learning.config import SMPConfig

    agent, given = request.agent, {"resume", "model_file"} & request.args.values.keys()
    if isinstance(agent, SMPConfig) and request.mode == "train" and not given and not agent.smp_prior_model.is_file():
        raise AssetMissingError(f"smp_prior_model {agent.smp_prior_model}: no such prior yet; mimickit prior "
                                f"{agent.smp_prior_cfg} --out_dir {agent.smp_prior_model.parent} trains it")


def check_resume(request: Request, path: Path) -> None:
    """Raises UserError if the newest checkpoint has another number of worlds or processes."""
    from mimickit.util.manifest import own_checkpoints

    found = [path] if (path / "manifest.json").is_file() else own_checkpoints(path)
    manifest = next((m for m in (read_json(folder / "manifest.json") for folder in found) if "num_envs" in m), None)
    if manifest is None:
        return  # the trainer will say what is wrong
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else len(request.devices)
    for flag, here in (("num_envs", request.num_envs), ("world_size", world_size)):
        if manifest.get(flag) != here:
            what = "worlds (--num_envs)" if flag == "num_envs" else "processes (--devices)"
            raise UserError(
                f"--resume {path} was trained with {manifest.get(flag)} {what}, this command asks for {here}: an exact "
                "continuation needs the same number. Use --model_file with its model.pt for a warm start")


def check_model_file(request: Request, path: Path) -> None:
    """Raises UserError if a file is no model, or one of other networks or of another character's motors.

    The observation size is known only when the environment has been built; then the file is read strictly.
    """
    import torch

    from mimickit.anim.mjcf import load_character_model
    from mimickit.learning.config import AdversarialConfig, PolicyConfig
    from mimickit.learning.model import ActorCritic
    from mimickit.util.checkpoint import misfits, read_model

    found, agent = read_model(path), request.agent
    if not isinstance(agent, PolicyConfig):
        return
    first = found.get("_model._actor_layers.0.weight", torch.empty(0, 0))
    dofs = load_character_model(request.env.char_file).num_dofs
    with torch.device("meta"):
        model = ActorCritic(first.shape[-1], dofs, agent.model)
    needed = {f"_model.{name}": parameter for name, parameter in model.named_parameters()}
    problems = misfits(needed, {name: tensor for name, tensor in found.items() if name in needed})
    if any(name.startswith("_disc_") for name in found) != isinstance(agent, AdversarialConfig):
        with_disc = "no " if isinstance(agent, AdversarialConfig) else "a "
        problems.append(f"it holds {with_disc}discriminator")
    if problems:
        raise UserError(f"--model_file {path} is not of agent {agent.agent_name} for {request.env.char_file}: "
                        f"{'; '.join(problems)}")

"""Mistakes that users make at the command line. ``python -m tests.unit.mistakes`` writes what was said to each."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pickle
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import yaml

from mimickit import run
from mimickit.config import load_layered
from mimickit.util.files import write_json

ROOT = Path(__file__).resolve().parents[2]
ARGS = "args/deepmimic_humanoid_ppo_args.txt"
CASE = f"--arg_file {ARGS} --engine_config data/engines/newton_engine.yaml --devices cpu --num_envs 4 " \
       "--visualize false --out_dir {tmp}/out"

MISTAKES: tuple[tuple[str, str], ...] = (  # command line, {tmp} a folder made by prepare(); words of the answer
    ("--arg_file args/deepmimic_humanoid_args.txt",
     "not found: args/deepmimic_humanoid_args.txt (did you mean 'args/deepmimic_humanoid_ppo_args.txt'?)"),
    ("--arg_file", "--arg_file (command line): needs a value"),
    (f"{ARGS}", "belongs to no flag (did you mean --arg_file"),
    ("walk --num_envs 4", "'walk' (command line) belongs to no flag"),
    ("train --num_envs 4", "mimickit train: name it first: mimickit train CASE_OR_RUN"),
    ("trian amp_g1", "unknown command 'trian' (did you mean 'train'?)"),
    ("compare A B", "unknown command 'compare' (did you mean 'report compare'?)"),
    ("train amp_g1 --variant best", "--variant best (command line): allowed are tuned, hiutil, default"),
    ("--mode train", "--env_config is missing"),
    ("--arg_file {tmp}/clip.pkl", "not a text file"),
    ("--arg_file {tmp}/misspelt_args.txt", "unknown flag --num_env ({tmp}/misspelt_args.txt)"),
    ("-num_envs 8 CASE", "'-num_envs 8' (command line) belongs to no flag (did you mean '--num_envs'?)"),
    ("--num_env 8 CASE", "unknown flag --num_env (command line) (did you mean '--num_envs'?)"),
    ("--num_enviroments=8 CASE", "unknown flag --num_enviroments"),
    ("--headless CASE", "unknown flag --headless"),
    ("--num_envs 8 16 CASE", "--num_envs 8 16 (command line): takes one value"),
    ("--num_envs many CASE", "--num_envs many (command line): a number is needed"),
    ("--num_envs 0 CASE", "--num_envs 0 (command line): must be at least 1"),
    ("--num_envs -4 CASE", "--num_envs -4 (command line): must be at least 1"),
    ("--num_envs 2.5 CASE", "a whole number is needed"),
    ("--num_envs CASE", "--num_envs (command line): needs a value"),
    ("--mode trian CASE", "--mode trian (command line): allowed are train, test (did you mean 'train'?)"),
    ("--visualize maybe --num_envs 0 CASE", "true and false; --num_envs 0 (command line): must be at least 1"),
    ("--visualize maybe CASE", "--visualize maybe (command line): allowed are true and false"),
    ("--devices cuda:9 CASE", "--devices cuda:9: this machine has"),
    ("--devices gpu CASE", "--devices gpu: allowed are cpu, and cuda:I for GPU I; this machine has"),
    ("--engine_config {tmp}/bullet.yaml CASE", "engine_name 'bullet' is not supported; supported: newton. Use"),
    ("--env_config data/envs/none.yaml --agent_config {tmp}/none.yaml CASE", "{tmp}/none.yaml"),
    ("--env_config {tmp}/noclip_env.yaml --set env.char_file=nobody.xml CASE", "character nobody.xml, motion data/"),
    ("--devices CASE", "--devices (command line): needs at least one value: cpu|cuda:I"),
    ("--max_samples 1e30 CASE", "must be at most"),
    ("--rand_seed -1 CASE", "--rand_seed -1 (command line): must be at least 0"),
    ("--time_budget_hours -1 CASE", "--time_budget_hours -1 (command line): must be at least 0"),
    ("--logger tensorboard CASE", "allowed are txt, tb, wandb"),
    ("--logger wandb CASE", "--logger wandb needs the package wandb: pip install wandb"),
    ("--web --save_html a.html --mode test CASE", "--web shows, --save_html a.html records: give one of them"),
    ("--save-html a.mp4 --mode test CASE", "--save_html a.mp4 (command line): the name must end in .html"),
    ("--web --viewer gl --port 0 CASE", "--port 0 (command line): must be at least 1"),
    ("--web false CASE", "--viewer web false (command line): takes one value"),
    ("--video_file film.avi --mode test CASE", "--video_file film.avi (command line): the name must end in .mp4"),
    ("--set env.motion_file=humanoid_walk CASE", "names a file that is not there: motion humanoid_walk (did you mean "
     "'data/motions/humanoid/humanoid_walk.pkl'?)"),
    ("--engine_config data/engines/none.yaml CASE", "not found: data/engines/none.yaml"),
    ("--env_config {tmp}/misspelt_env.yaml CASE", "unknown key 'episode_lenght' (did you mean 'episode_length'?)"),
    ("--env_config {tmp}/noclip_env.yaml CASE", "motion data/motions/none.pkl"),
    ("--env_config {tmp}/broken.yaml CASE", "broken.yaml"),
    ("--agent_config data/agents/none.yaml CASE", "not found: data/agents/none.yaml"),
    ("--agent_config data/agents/amp_humanoid_agnet.yaml CASE",
     "(did you mean 'data/agents/amp_humanoid_agent.yaml'?)"),
    ("--env_config data/env/amp_humanoid_env.yaml CASE", "(did you mean 'data/envs/amp_humanoid_env.yaml'?)"),
    ("--set env.char_file=data/assets/humanoid/humanoit.xml CASE",
     "character data/assets/humanoid/humanoit.xml (did you mean 'data/assets/humanoid/humanoid.xml'?)"),
    ("--set env.motion_file=data/motions/humanoid/humanoid_spinkik.pkl CASE",
     "(did you mean 'data/motions/humanoid/humanoid_spinkick.pkl'?)"),
    ("--agent_config data/envs/deepmimic_humanoid_env.yaml CASE", "missing key 'agent_name'"),
    ("--set steps_per_iter=4 CASE", "--set steps_per_iter=4: expected KEY=VALUE with a key like"),
    ("--set agent.step_per_iter=4 CASE", "unknown key 'step_per_iter' (from --set) (did you mean 'steps_per_iter'?)"),
    ("--set agent.actor_batch_size=1000 CASE", "actor_batch_size = 1000"),
    ("--set engine.sim_freq=100 CASE", "sim_freq 100 must be a multiple of control_freq 30"),
    ("--set CASE", "--set (command line): needs at least one value: KEY=VALUE"),
    ("--agent_config data/agents/amp_humanoid_agent.yaml --set agent.disc_buffer_size=2 CASE", "disc_buffer_size = 2"),
    ("--eval_envs 4 CASE", "--eval_envs 4 leaves none of the 4 environments"),
    ("--model_file {tmp}/none.pt CASE", "not found: {tmp}/none.pt"),
    ("--model_file {tmp}/clip.pkl --mode test CASE", "is not a readable model file"),
    ("--model_file {tmp}/other.pt --mode test CASE", "is not of agent PPO for data/assets/humanoid"),
    ("--model_file {tmp}/run --mode test CASE", "{tmp}/run is a folder, not a model file"),
    ("--resume {tmp}/nothing CASE", "not found: {tmp}/nothing"),
    ("--resume {tmp}/run --num_envs 8 CASE", "was trained with 16 worlds (--num_envs), this command asks for 8"),
    ("--resume {tmp}/run --num_envs 16 --devices cpu cpu CASE", "was trained with 1 processes (--devices)"),
    ("--resume {tmp}/run --mode test CASE", "--resume (command line) is for --mode train"),
    ("--overwrite --mode test CASE", "--overwrite (command line) is for --mode train"),
    (f"--resume --arg_file {ARGS}", "without a path continues the run in --out_dir, which is not given"),
    ("--out_dir {tmp}/run CASE", "holds a training already: continue it with --resume"),
    ("--out_dir {tmp}/run --overwrite --resume CASE", "--overwrite would remove what --resume"),
    ("--out_dir {tmp}/clip.pkl CASE", "cannot write there: Not a directory"),
    ("--out_dir /proc/run CASE", "--out_dir /proc/run: cannot write there"),
    ("--env_config {tmp}/ragdoll_env.yaml CASE", "ragdoll.xml: no stiffness at joint "),
)


def prepare(tmp: Path) -> None:
    """Files that mistakes are made with."""
    env = load_layered(ROOT / "data/envs/deepmimic_humanoid_env.yaml")
    model = (ROOT / "data/assets/humanoid/humanoid.xml").read_text()
    (tmp / "ragdoll.xml").write_text(re.sub(r' (stiffness|damping)="[^"]*"', "", model))
    for name, changes in {"misspelt": {"episode_lenght": 3}, "noclip": {"motion_file": "data/motions/none.pkl"},
                          "ragdoll": {"char_file": str(tmp / "ragdoll.xml")}}.items():
        (tmp / f"{name}_env.yaml").write_text(yaml.safe_dump(env | changes))
    (tmp / "bullet.yaml").write_text("engine_name: bullet\nenv_spacing: 5\n")
    (tmp / "broken.yaml").write_text("env_name: [deepmimic\n")
    (tmp / "misspelt_args.txt").write_text("--num_env 8\n")
    (tmp / "clip.pkl").write_bytes(pickle.dumps({"fps": 30, "frames": [0.5]}))
    torch.save({"_model._actor_layers.0.weight": torch.zeros(8, 4)}, tmp / "other.pt")
    write_json(tmp / "run/checkpoints/0000000003/manifest.json",
               {"files": {}, "world_size": 1, "num_envs": 16, "iteration": 3})


def argv(mistake: str, tmp: Path) -> list[str]:
    """The command line of a mistake; CASE stands for a case's own flags, which come last."""
    return shlex.split(mistake.replace("CASE", CASE).format(tmp=tmp))


def said(words: list[str]) -> tuple[int, str]:
    """Exit code and what the program wrote to stderr, in this process."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        code = run.main(words)
    return code, text.getvalue()


@contextlib.contextmanager
def project_root() -> Iterator[None]:
    """Paths are relative to the project; W&B is not installed."""
    with contextlib.chdir(ROOT), mock.patch.dict(sys.modules, {"wandb": None}):
        yield


def main() -> None:
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    writer.writerow(("command", "exit_code", "said"))
    with tempfile.TemporaryDirectory() as folder, project_root():
        prepare(Path(folder))
        for mistake, _ in MISTAKES:
            code, text = said(argv(mistake, Path(folder)))
            shown = text.strip().replace(folder, "TMP").replace(str(ROOT), "PROJECT").replace("\n", " | ")
            writer.writerow((f"mimickit {mistake.format(tmp='TMP')}", code, shown))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main()

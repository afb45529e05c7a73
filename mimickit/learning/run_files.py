"""What a training leaves in its run folder: log, progress, heartbeats, models, checkpoints. See docs/run_folder.md."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mimickit.config import differences
from mimickit.learning.config import TrainOptions
from mimickit.learning.evaluation import Evaluation
from mimickit.util.checkpoint import Checkpoint, CheckpointWriter, load_checkpoint, resolve_checkpoint, save_model
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from mimickit.util.files import plain, write_json
from mimickit.util.logging import Heartbeat, Logger, Number, Progress, print_row, warn

LAYOUT = 2  # of checkpoints; raised when older ones can no longer be continued
LAST_WRITE = 2.0  # s, for a checkpoint that is being written when training fails


class RunFiles:
    """The files of one training. All processes call all methods; most files are the root's."""

    def __init__(self, options: TrainOptions, dist: Distributed) -> None:
        self.out_dir = Path(options.out_dir)
        self.model_file = self.out_dir / "model.pt"
        self.checkpoint: Path | None = None  # the newest
        self._options, self._dist = options, dist
        self._writer = CheckpointWriter(self.out_dir / "checkpoints", dist)
        self._heartbeat: Heartbeat | None = None

    # --- log and progress

    def beat(self) -> None:
        """A sign of life."""
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self.out_dir, self._dist.rank)
        self._heartbeat.beat()

    def open_log(self, first_row: int | None, last_samples: int) -> None:
        """Begin the log, or continue it.

        Args:
            first_row: iteration from which rows are replaced; None for a new run.
            last_samples: with which the training will end.
        """
        options, is_root = self._options, self._dist.is_root
        self.log = Logger(self.out_dir, options.logger, first_row, options.agent_config, is_root, options.run)
        self.progress = Progress(self.out_dir, last_samples, is_root)

    def print_row(self, row: Mapping[str, Number]) -> None:
        if self._dist.is_root:
            print_row(row, self.progress)

    def on_step(self) -> None:
        """A step of an evaluation was made."""
        self.beat()
        self.progress.write()

    # --- models

    def save_model(self, tensors: Mapping[str, Tensor], iteration: int) -> None:
        """The model as it is now."""
        if self._dist.is_root:
            save_model(self.model_file, tensors)
            if self._options.save_int_models:
                save_model(self.out_dir / "int_models" / f"model_{iteration:010d}.pt", tensors)

    def save_best(self, tensors: Mapping[str, Tensor], iteration: int, evaluation: Evaluation) -> None:
        """The model with the best evaluation so far; ``iteration``: at the end of which it was so."""
        if self._dist.is_root:
            best = self.out_dir / "checkpoints" / "best"
            save_model(best / "model.pt", tensors)
            write_json(best / "evaluation.json", {"iteration": iteration, **asdict(evaluation)})

    # --- checkpoints

    def save_checkpoint(self, shared: Mapping[str, Any], local: Mapping[str, Any], num_envs: int) -> None:
        """Begin to write ``shared``, which all processes agree on, and ``local``, this process's own. Tensors are
        copied at once."""
        manifest = {
            "layout": LAYOUT, "samples": shared["samples"], "num_envs": num_envs, "time": time.time(),
            "configuration": self._options.configuration, "run": self._options.run,
        }
        self.checkpoint = self._writer.save(shared["iteration"], shared, local, manifest)

    def read_checkpoint(self, path: Path, num_envs: int) -> Checkpoint:
        """The newest checkpoint at ``path``; warns where it was written under another configuration.

        Raises:
            AssetMissingError: there is none.
            UserError: it is of another number of processes or environments, or of an earlier layout.
        """
        found = load_checkpoint(resolve_checkpoint(path, self._dist), self._dist)
        manifest = found.manifest
        if manifest.get("layout") != LAYOUT:
            raise UserError(
                f"{found.path} was written by another version of this program (layout {manifest.get('layout', 1)}, "
                f"here {LAYOUT}) and cannot be continued exactly. Use --model_file with the run's model.pt and another "
                f"--out_dir for a warm start, or continue with the version that wrote it")
        if manifest["num_envs"] != num_envs:
            raise UserError(
                f"{found.path} was written with num_envs {manifest['num_envs']}, this run has {num_envs}: an "
                f"exact continuation needs the same number. Use --model_file with its model.pt for a warm start"
            )
        changed = differences(manifest.get("configuration", {}), plain(self._options.configuration))
        if changed and self._dist.is_root:
            warn(f"{found.path} was written under another configuration, so this is no exact continuation: "
                 + "; ".join(changed))
        self.checkpoint = found.path
        return found

    def check_writing(self) -> None:
        """Raise what writing a checkpoint has met with so far. Does not wait."""
        self._writer.check()

    def finish_writing(self, timeout: float | None = None) -> None:
        """Wait until the checkpoint is written, for ``timeout`` s at most."""
        self._writer.wait(timeout)

"""How long a session will take: recorded times of stages, scaled by the cases' costs. Pure functions."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from mimickit.cases import Case
from mimickit.longcycle.ledger import State
from mimickit.longcycle.settings import Settings

TRAINING = "long_train"


class Estimate:
    """Seconds of stages, and of a session with ``workers`` cases at once.

    A stage is expected to take as long as it last did in this root. Without a record it takes what the profile says
    (``stage_seconds``; ``long_train`` times the case's cost), scaled by how the existing records compare with that.
    """

    def __init__(self, settings: Settings, workers: int, cores: int) -> None:
        self.settings, self.workers = settings, max(1, workers)
        gpus = len({device for device in settings.pool if device != "cpu"})
        self.crowd = self.workers / max(1, min(self.workers, gpus or cores))  # cases that share a device

    def expected(self, case: Case, stage: str) -> float:
        """Seconds of a stage according to the profile, which were recorded on another machine."""
        cost = self.settings.cost(case) if stage == TRAINING else 1.0
        return self.settings.profile.stage_seconds.get(stage, 0.0) * cost * self.crowd

    def recorded(self, cases: Iterable[Case], state: State) -> dict[tuple[str, str], float]:
        """Seconds by (case, stage) of the last success of each in the ledger."""
        return {(case.name, stage): float(event["elapsed_s"]) for case in cases
                for attempt in state.case(case.name).attempts.values()
                for stage, event in attempt.stages.items() if event.get("outcome") == "ok"}

    def stages(self, cases: Sequence[Case], state: State,
               ages: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        """Seconds of every stage of these cases. One that is already late counts as a record."""
        known = self.recorded(cases, state)
        plan = {(case.name, stage): known.get((case.name, stage), self.expected(case, stage))
                for case in cases for stage in self.settings.stages(case)}
        known |= {key: 1.25 * age for key, age in ages.items() if 1.25 * age > plan.get(key, age)}
        by_name = {case.name: case for case in cases}
        planned = sum(self.expected(by_name[name], stage) for name, stage in known)
        pace = sum(known.values()) / planned if planned else 1.0
        return {(case.name, stage): known.get((case.name, stage), pace * self.expected(case, stage))
                for case in cases for stage in self.settings.stages(case)}

    def left(self, cases: Sequence[Case], state: State, begun: Container[str],
             running: Mapping[tuple[str, str], float | None], ages: Mapping[tuple[str, str], float]) -> float:
        """Seconds until the session's cases have ended.

        Args:
            begun: names of the cases that have begun in this session.
            running: running stages by (case, stage), with the seconds left by their own estimate, if they have one.
            ages: seconds for which they have run.
        """
        seconds = self.stages(cases, state, ages)
        of_cases = []
        for case in cases:
            if case.name in state.touched:
                continue
            anew = self.settings.resume_skip_status == "none" and case.name not in begun
            attempts = [] if anew else list(state.case(case.name).attempts.values())
            ended = {stage for stage, event in attempts[-1].stages.items() if event.get("outcome") == "ok"} \
                if attempts else set()
            rest = 0.0
            for stage in self.settings.stages(case):
                key = case.name, stage
                if key in running:
                    told = running[key]
                    rest += max(0.0, seconds[key] - ages.get(key, 0.0)) if told is None else told
                elif stage not in ended:
                    rest += seconds[key]
            of_cases.append(rest)
        if not of_cases:
            return 0.0
        return max(sum(of_cases) / min(self.workers, len(of_cases)), *of_cases, 0.0)

    def basis(self, cases: Sequence[Case], state: State) -> str:
        """What the estimate is based on, in words."""
        known, total = len(self.recorded(cases, state)), sum(len(self.settings.stages(case)) for case in cases)
        if known == total:
            return "as long as the stages took before in this folder"
        profile = f"the times recorded for profile {self.settings.profile_name} and the costs in targets.yaml"
        return f"{known} of {total} stages as they went before in this folder, else {profile}" if known else profile

"""Messages about changes: sent when a case's verdict or drift differs from what was told last, and never otherwise."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimickit.longcycle.results.history import History, changes, verdicts
from mimickit.longcycle.results.pages import day
from mimickit.longcycle.results.trends import sentence
from mimickit.util.failures import UserError
from mimickit.util.files import read_json, write_json

TOLD = "told.json"  # beside the history: the verdicts of the last message of each way
SECONDS = 30.0
GITHUB = "https://api.github.com"
WORDS = {"failed": "fails", "drift": "drifts", "better": "is better than before", "steady": "is steady",
         "few": "passes"}
GOOD = ("steady", "few", "better")


def message(history: History, told: Mapping[str, str]) -> dict[str, Any] | None:
    """What changed since ``told``, as the JSON that a webhook gets; None when nothing did.

    ``few`` and ``steady`` are the same: a case that is watched long enough is no news.
    """
    now, news = verdicts(history), []
    for case, verdict in now.items():
        before = told.get(case, "few")
        if verdict == before or {verdict, before} <= {"few", "steady"}:
            continue
        last = next(night for night in reversed(history.nights) if case in night.cases)
        why = [f"{series.measure} {sentence(history, series)}" for series in history.series[case]
               if series.verdict == verdict]
        text = last.cases[case].note if verdict == "failed" else "; ".join(why)
        news.append({"case": case, "before": before, "now": verdict, "text": text})
    if not news:
        return None
    good, last = history.last_good(), history.nights[-1]
    bad = [line for line in news if line["now"] not in GOOD]
    names = ", ".join(f"{line['case']} {WORDS[line['now']]}" for line in (bad or news)[:5])
    more = len(bad or news) - 5
    return {
        "title": f"{names}{f' and {more} more' if more > 0 else ''}", "news": news, "bad": bool(bad),
        "night": {"time": day(last.time), "root": last.root, "commit": last.commit, "machine": last.machine},
        "last_good": None if good is None else {"time": day(history.nights[good].time),
                                                "commit": history.nights[good].commit},
        "changed_since": [] if good is None else changes(history.nights[good], last),
        "passed": sum(verdict != "failed" for verdict in now.values()), "cases": len(now)}


def markdown(told: Mapping[str, Any], link: str = "") -> str:
    """A message as the body of an issue."""
    lines = [f"- **{line['case']}**: {WORDS[line['before']]} → {WORDS[line['now']]}. {line['text']}"
             for line in told["news"]]
    if told["last_good"]:
        lines += ["", f"Last good night: {told['last_good']['time']}, commit {told['last_good']['commit']}."]
    if told["changed_since"]:
        lines += ["", "Changed since then:", *(f"- {line}" for line in told["changed_since"])]
    return "\n".join([*lines, *(["", link] if link else [])])


def notify(history: History, path: Path, webhook: str | None, repository: str | None, link: str = "",
           github: str = GITHUB) -> str:
    """Send what changed since the last message of each way, and note it; returns a line about what was done.

    Args:
        path: the history's file; what was told stands beside it.
        webhook: address that gets the message as JSON by POST.
        repository: ``owner/name`` on GitHub, where an issue is opened; the variable GITHUB_TOKEN has to be set.
        link: where the page is.

    Raises:
        UserError: an address is none, also when there is nothing to tell; or it could not be sent: then it counts as
            not told that way, and the next call tries again.
    """
    file, ways = path.with_name(TOLD), {}
    if webhook:
        if not webhook.startswith(("http://", "https://")):
            raise UserError(f"--webhook {webhook}: give an address that begins with http:// or https://")
        ways["webhook"] = lambda told: send(webhook, {**told, "link": link}, {})
    if repository:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise UserError(f"--github-issue {repository}: give OWNER/NAME")
        if not os.environ.get("GITHUB_TOKEN"):
            raise UserError("--github-issue: the variable GITHUB_TOKEN is not set")
        ways["github_issue"] = lambda told: issue(f"{github}/repos/{repository}/issues", told, link)
    sent = ""
    for way, tell in ways.items():
        known = read_json(file)
        if told := message(history, known.get(way) or {}):
            tell(told)
            write_json(file, {**known, way: verdicts(history)})  # at once: the next way may fail
            sent = f"told: {told['title']}"
    return sent or "nothing changed, no message"


def issue(address: str, told: Mapping[str, Any], link: str) -> None:
    """Open an issue on GitHub with the token of the variable GITHUB_TOKEN. Raises UserError as :func:`send`."""
    send(address, {"title": told["title"], "body": markdown(told, link)},
         {"Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}", "Accept": "application/vnd.github+json"})


def send(address: str, data: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    """POST JSON. Raises UserError when the address does not take it."""
    request = urllib.request.Request(address, json.dumps(data).encode(), {"Content-Type": "application/json",
                                                                         "User-Agent": "mimickit", **headers})
    host = address.split("/")[2]
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except urllib.error.HTTPError as error:
        raise UserError(f"{host} did not take the message: {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"{host} was not reached: {getattr(error, 'reason', error)}") from None

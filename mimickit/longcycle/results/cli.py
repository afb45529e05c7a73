"""``mimickit report``: pages of roots, and the history of nights.

    mimickit report ROOT                        write ROOT/index.html, and say where it is
    mimickit report --serve ROOT                the same, served on this machine and renewed while somebody looks
    mimickit report ROOT [ROOT ...] --out DIR   one folder to copy or publish; several roots are seeds of one result
    mimickit report ROOT --commit docs/results  add a root to the committed results; without ROOT make their page anew
    mimickit report compare ROOT_A ROOT_B       differences case by case, with intervals; exit code 1 if one is worse
    mimickit report --history [FILE]            write the page of the history beside it (output/history/index.html)
    mimickit report --history --add ROOT        first add a root to it: one that was merged, or brought from elsewhere
    mimickit report --history --accept CASES --reason TEXT   take their present level as what it should be
    mimickit report --history --webhook URL --github-issue OWNER/NAME   send a message if a verdict or drift changed

ROOT is a name below output/train, or a path. docs/results_page.md shows the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mimickit.longcycle.results.serve import LOOPBACK, PORT
from mimickit.longcycle.roots import find_root
from mimickit.longcycle.settings import parse_list, relative_to
from mimickit.util.failures import UserError, explains_mistakes
from mimickit.util.processes import heed_interrupt

COMPARE = "compare"


def parser() -> argparse.ArgumentParser:
    from mimickit.longcycle.results.history import HISTORY

    known = argparse.ArgumentParser(prog="mimickit report", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("roots", nargs="*", metavar="ROOT", help="folders of sessions of the acceptance suite")
    known.add_argument("--out", type=Path, metavar="DIR", help="folder to write the page and its films to "
                       "(default: the root itself; of a history, the folder of FILE)")
    known.add_argument("--commit", type=Path, metavar="DIR", help="add a root to the results in the repository")
    known.add_argument("--serve", action="store_true", help="serve the page until Ctrl-C")
    known.add_argument("--host", default=LOOPBACK, help=f"address to serve on ({LOOPBACK}: this machine only)")
    known.add_argument("--port", type=int, default=PORT, help=f"port to serve on ({PORT}, or the next free one)")
    known.add_argument("--history", nargs="?", const=HISTORY, type=Path, metavar="FILE",
                       help=f"the history instead of a root ({HISTORY}); its page, index.html and page/, is written to "
                       "the folder of FILE unless --out says otherwise")
    known.add_argument("--add", metavar="ROOT", action="append", default=[], help="add a root to the history")
    known.add_argument("--accept", metavar="CASE,CASE", help="measure drift of these cases from now on")
    known.add_argument("--reason", default="", metavar="TEXT", help="why a level is accepted")
    known.add_argument("--webhook", metavar="URL", help="send a message there if something changed")
    known.add_argument("--github-issue", metavar="OWNER/NAME", help="open an issue there if something changed")
    known.add_argument("--link", default="", metavar="URL", help="where the page will be, for the message")
    return known


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_intermixed_args(words)
    about_history = [name for name in ("add", "accept", "reason", "webhook", "github_issue", "link")
                     if getattr(args, name)]
    if args.history is not None:
        if args.roots:
            raise UserError(f"mimickit report --history {' '.join(args.roots)}: --add ROOT adds a root to the history")
        return history(args)
    if about_history:
        raise UserError(f"--{about_history[0].replace('_', '-')} goes with --history")
    if args.roots[:1] == [COMPARE]:
        return compare(args.roots[1:])
    if args.commit and not args.roots:
        from mimickit.longcycle.results.committed import write_page

        if not (args.commit / "data/history.jsonl").is_file():
            raise UserError(f"--commit {args.commit}: no data/history.jsonl there; name a root to begin with")
        print(write_page(args.commit))
        return 0
    if not args.roots:
        raise UserError("mimickit report: name a root: a folder below output/train that the suite has written")
    return report(args)


def report(args: argparse.Namespace) -> int:
    """Write the page of roots, and serve it if asked to."""
    from mimickit.longcycle.results.data import Root
    from mimickit.longcycle.results.machine import Machine
    from mimickit.longcycle.results.pages import ReportPage

    repo = Path.cwd()
    roots = [Root(find_root(text, repo)) for text in args.roots]
    if len(roots) > 1 and args.out is None:
        raise UserError("several roots make one page in a folder of its own: --out DIR is missing")
    if len({root.path for root in roots}) < len(roots):
        raise UserError("a root is given twice")
    if args.commit:
        if len(roots) > 1 or args.serve or args.out:
            raise UserError("--commit takes one root, and neither --out nor --serve")
        from mimickit.longcycle.results.committed import commit

        print(commit(roots[0], args.commit))
        return 0
    out = check_out(args.out) if args.out else roots[0].path
    with writable(out):
        page = ReportPage(roots, out)

    machine = Machine()

    def write() -> Path:
        for root in roots:
            root.refresh()
        live = any(root.alive for root in roots)
        if live and not args.out and (roots[0].path / "page/live.js").is_file():
            return roots[0].path / "index.html"  # the session at work writes it, and knows more
        return page.write(machine=machine.look() if live else None)

    with writable(out):
        print(f"page: {relative_to(write(), repo)}")
    return serve(page.folder.path, write, args.host, args.port) if args.serve else 0


def compare(roots: Sequence[str]) -> int:
    """Print the comparison of two roots; 1 if a measure of the second is worse."""
    from mimickit.longcycle.results import compare as comparing
    from mimickit.longcycle.results.data import Root
    from mimickit.longcycle.results.history import HISTORY, read

    if len(roots) != 2:
        raise UserError(f"mimickit report compare takes two roots, {len(roots)} given")
    a, b = (Root(find_root(text, Path.cwd())) for text in roots)
    found = comparing.compare(a, b, read(HISTORY))
    print("\n".join(comparing.table(a, b, found)))
    return int(bool(comparing.worse(found)))


def history(args: argparse.Namespace) -> int:
    """Add to the history, accept levels, write its page, send a message, as asked for."""
    from mimickit.longcycle.results.data import Root
    from mimickit.longcycle.results.history import accept, append, night_of, read
    from mimickit.longcycle.results.notify import notify
    from mimickit.longcycle.results.trends import write_history

    for text in args.add:
        root = Root(find_root(text, Path.cwd()))
        night = night_of(root, whole=True)
        print(f"{text}: {f'{len(night.cases)} cases added' if append(args.history, night) else 'is there already'}")
    if args.accept:
        accept(args.history, parse_list(args.accept) or [], args.reason)
    known = read(args.history).watched()
    if not known.nights:
        raise UserError(f"{args.history}: no night is recorded there; every session of the suite adds one, and --add "
                        "ROOT adds an earlier one")
    out = check_out(args.out) if args.out else check_beside(args.history)

    def write() -> Path:
        return write_history(read(args.history).watched(), out)

    with writable(out):
        print(f"page: {relative_to(write().absolute(), Path.cwd())}")
    drifting = [case for case in known.cases if known.verdict(case) == "drift"]
    nights = f"{len(known.nights)} night{'s' if len(known.nights) != 1 else ''}"
    print(f"{nights}, {len(known.cases)} cases; {', '.join(drifting) or 'none'} drifting")
    if known.damaged:
        print(known.skipped())
    if args.webhook or args.github_issue:
        print(notify(known, args.history, args.webhook, args.github_issue, args.link))
    return serve(out, write, args.host, args.port) if args.serve else 0


def check_out(out: Path) -> Path:
    """A folder that is empty, not there, or holds a page already. Raises UserError for any other."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "page/page.js").is_file():
        raise UserError(f"--out {out}: holds other files; give a new folder, or one that holds a page")
    return out


def check_beside(history: Path) -> Path:
    """The folder of a history, for its page. Raises UserError where another ``index.html`` lies there."""
    folder = history.parent
    if (folder / "index.html").exists() and not (folder / "page/page.js").is_file():
        raise UserError(f"{folder / 'index.html'} is no page of mimickit report and would be replaced: give --out DIR")
    return folder


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Answer a folder that the system refuses to write to with the option that writes elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise UserError(f"{folder}: the page cannot be written there ({error.strerror}): give --out DIR") from None


def serve(folder: Path, write: Callable[[], object], host: str, port: int) -> int:
    """Serve a page until Ctrl-C."""
    from mimickit.longcycle.results.serve import make_server

    try:
        server = make_server(folder, write, host, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot serve there: {error}") from None
    print(f"http://{host}:{server.server_port}/ (Ctrl-C ends)", flush=True)
    heed_interrupt()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()
    return 0

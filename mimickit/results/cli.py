"""``mimickit report``: pages of roots.

    mimickit report ROOT                     write ROOT/index.html, and say where it is
    mimickit report --serve ROOT             the same, served on this machine and renewed while somebody looks
    mimickit report ROOT [ROOT ...] --out DIR   one folder to copy or publish; several roots are seeds of one result

ROOT is a name below output/train, or a path. docs/results_page.md shows the pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimickit.longcycle.roots import find_root
from mimickit.longcycle.settings import relative_to
from mimickit.results.serve import LOOPBACK, PORT
from mimickit.util.failures import UserError, explains_mistakes


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(prog="mimickit report", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("roots", nargs="*", metavar="ROOT", help="folders of sessions of the acceptance suite")
    known.add_argument("--out", type=Path, metavar="DIR", help="folder to write the page and its films to")
    known.add_argument("--serve", action="store_true", help="serve the page until Ctrl-C")
    known.add_argument("--host", default=LOOPBACK, help=f"address to serve on ({LOOPBACK}: this machine only)")
    known.add_argument("--port", type=int, default=PORT, help=f"port to serve on ({PORT}, or the next free one)")
    return known


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(words)
    if not args.roots:
        raise UserError("mimickit report: name a root: a folder below output/train that the suite has written")
    return report(args)


def report(args: argparse.Namespace) -> int:
    """Write the page of roots, and serve it if asked to."""
    from mimickit.results.data import Root
    from mimickit.results.machine import machine
    from mimickit.results.pages import ReportPage

    repo = Path.cwd()
    roots = [Root(find_root(text, repo)) for text in args.roots]
    if len(roots) > 1 and args.out is None:
        raise UserError("several roots make one page in a folder of its own: --out DIR is missing")
    if len({root.path for root in roots}) < len(roots):
        raise UserError("a root is given twice")
    out = check_out(args.out) if args.out else roots[0].path
    page = ReportPage(roots, out)
    index = page.write(machine=machine() if any(root.alive for root in roots) else None)
    print(f"page: {relative_to(index, repo)}")
    if args.serve:
        def write() -> None:
            for root in roots:
                root.refresh()
            if args.out or not roots[0].alive:  # a session at work writes its page itself
                page.write()

        return serve(out, write, args.host, args.port)
    return 0


def check_out(out: Path) -> Path:
    """A folder that is empty, not there, or holds a page already. Raises UserError for any other."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "page/page.js").is_file():
        raise UserError(f"--out {out}: holds other files; give a new folder, or one that holds a page")
    return out


def serve(folder: Path, write: object, host: str, port: int) -> int:
    """Serve a page until Ctrl-C."""
    from mimickit.results.serve import make_server

    try:
        server = make_server(folder, write, host, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot serve there: {error}") from None
    print(f"http://{host}:{server.server_port}/ (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0

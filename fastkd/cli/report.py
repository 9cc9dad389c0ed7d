"""fastkd report RUN...: the runs' table, and a page that can be mailed."""

from __future__ import annotations

from pathlib import Path

from fastkd import report
from fastkd.cli.flags import Parser


def main(arguments: list[str]) -> int:
    made = Parser(
        prog="fastkd report",
        description="Compares runs: a table here, and one page of html that opens offline.",
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    made.add_argument("--out", type=Path, metavar="FILE", help="the page to write, such as report.html")
    space = made.parse_args(arguments)
    runs = [report.read_run(folder) for folder in space.runs]
    print(report.table(runs))
    if space.out:
        report.write_html(runs, space.out)
        print(f"wrote {space.out}")
    return 0

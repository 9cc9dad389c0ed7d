"""The page of a report: one HTML file that loads nothing, for light and dark, for a desk and a phone."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import yaml

from fastkd.charts import SCRIPT, STYLE, Bar, Line, bars, clean, curves, styled
from fastkd.config import flat

if TYPE_CHECKING:
    from fastkd.report import Row, Run

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#15191d;--muted:#5d6872;--rule:#d9dee3;--wash:#f5f7f8}
@media (prefers-color-scheme:dark){
:root{--page:#14181d;--ink:#e6eaee;--muted:#9aa6b1;--rule:#363e47;--wash:#1b2127}}
body{margin:0 auto;max-width:1040px;padding:20px 18px 48px;background:var(--page);color:var(--ink);
font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h1{font-size:21px;margin:0}h2{font-size:16px;margin:30px 0 8px}h3{font-size:14px;margin:26px 0 8px}
p{margin:6px 0}.note{text-wrap:balance}.meta,.note{color:var(--muted);font-size:12.5px}
.wide{overflow-x:auto;margin-top:14px;
background:linear-gradient(to left,var(--page) 40%,transparent) right/40px 100% no-repeat local,
linear-gradient(to left,var(--rule),transparent) right/16px 100% no-repeat scroll}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;width:100%}
th,td{padding:4px 0 4px 18px;text-align:right;font-weight:400;vertical-align:baseline}
thead th{color:var(--muted);font-size:12.5px;border-bottom:1px solid var(--ink)}
tbody tr{border-bottom:1px solid var(--rule)}
.l{text-align:left}tbody th{font-weight:600}small{display:block;font-weight:400;color:var(--muted)}
th:first-child{padding-left:0;position:sticky;left:0;background:var(--page)}
td.pm:empty{padding:0}td.pm{padding-left:4px;text-align:left;font-size:12px;color:var(--muted)}
.narrow{display:none}
@media (max-width:640px){
th,td{padding-left:11px}.narrow{display:block}.l:not(:first-child){display:none}}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,360px),1fr));gap:14px 34px}
.warn{border-left:3px solid #d0750a;padding:2px 14px;margin-top:18px;background:var(--wash)}
.warn h2{margin:8px 0}
.charts div figure{margin-bottom:14px}
ul{margin:6px 0;padding-left:18px}
details{border-bottom:1px solid var(--rule);padding:5px 0}summary{cursor:pointer}
summary span{color:var(--muted);font-size:12.5px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:1px 14px;margin:6px 0 12px;font-size:12.5px}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:0 28px}
h4{font-size:12.5px;margin:8px 0 4px}
pre{margin:4px 0 12px;padding:10px 12px;background:var(--wash);font-size:12px;overflow-x:auto}
"""


def page(rows: Sequence[Row], note: str) -> str:
    """The whole document. It loads nothing, and a browser will run no script in it but its own."""
    runs = [(_name(row, run), run) for row in rows for run in row.runs]
    warnings = [(name, text) for name, run in runs for text in _warnings(run)]
    datasets = list(dict.fromkeys(run.dataset for _, run in runs))
    baseline = next((row.label for row in rows if row.alone), None)  # wears the ink, the others the colours
    others = dict.fromkeys(row.label for row in rows if row.label != baseline)
    styles = {label: i for i, label in enumerate(others, 1)}
    machines = dict.fromkeys(str(run.env.get("device_name") or run.env.get("cpu") or "") for _, run in runs)
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    facts = [now, f"{len(runs)} run{'s' * (len(runs) > 1)}", *filter(None, machines)]
    title = f"{', '.join(datasets)}: distillation report"
    body = [f'<h1>{_e(title)}</h1><p class="meta">{" &middot; ".join(map(_e, facts))}</p>']
    if warnings:
        items = "".join(f"<li><b>{_e(name)}</b>: {_e(text)}</li>" for name, text in warnings)
        body.append(f'<section class="warn"><h2>Warnings</h2><ul>{items}</ul></section>')
    for dataset in datasets:
        here = [row for row in rows if row.runs[0].dataset == dataset]
        body += [f"<h2>{_e(dataset)}</h2>"] if len(datasets) > 1 else []
        body += [_results(here, styles), f'<p class="note">{_e(note)}.</p>']
        body += [_comparison(net, group, styles) for net, group in _by_net(here)]
    if saved := [f"<li><b>{_e(name)}</b>: {text}</li>" for name, run in runs if (text := _saving(run))]:
        body.append(f"<h2>Teacher cache</h2><ul>{''.join(saved)}</ul>")
    body += ["<h2>Runs</h2>", *(_details(name, run) for name, run in runs)]
    proof = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{proof}'"
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_e(title)}</title><style>{_STYLE}{STYLE}</style></head><body>",
            *body,
            f"<script>{SCRIPT}</script></body></html>\n",
        )
    )


def _e(value: object) -> str:
    return html.escape(clean(value))


def _name(row: Row, run: Run) -> str:
    section = run.config.get("run")
    repeat = section if isinstance(section, Mapping) else {}
    seed = [f"seed {repeat['seed']}"] if "seed" in repeat else []
    trial = [f"trial {repeat['trial']}"] if repeat.get("trial") else []
    return ", ".join([row.title, run.net, *seed, *trial])


def _warnings(run: Run) -> list[object]:
    found = (run.summary or {}).get("warnings")
    return found if isinstance(found, list) else []


def _results(rows: Sequence[Row], styles: Mapping[str, int]) -> str:
    percent = "<small>top-1 %</small>"
    heads = ["n", f"last epoch{percent}", f"best epoch{percent}", f"gain{percent}"]
    heads += ["last epoch<small>top-5 %</small>", "epochs", "time", "images/s"]
    names = "".join(f'<th class="l">{head}</th>' for head in ("run", "net", "teacher"))
    heads = [f'<th colspan="2">{head}</th>' for head in heads]
    lines = [f"<thead><tr>{names}{''.join(heads)}</tr></thead><tbody>"]
    for row in rows:
        run, (values, spreads) = row.runs[0], row.cells("\u00b1")
        top5 = row.stats["last_top5"].mean
        values.insert(4, "-" if top5 is None else f"{top5:.2f}")
        spreads.insert(4, "")
        teacher = "" if row.alone else run.teacher
        said = f'<small class="narrow">{_e(run.net)}{" from " * bool(teacher)}{_e(teacher)}</small>'
        said += f"<small>{_e(row.note)}</small>" if row.note else ""
        names = f'<th class="l">{_key(styles.get(row.label, 0))}{_e(row.title)}{said}</th>'
        names += f'<td class="l">{_e(run.net)}</td><td class="l">{_e(teacher)}</td>'
        numbers = (f'<td>{v}</td><td class="pm">{s}</td>' for v, s in zip(values, spreads, strict=True))
        lines.append(f"<tr>{names}{''.join(numbers)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</tbody></table></div>'


def _by_net(rows: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    """What is worth comparing in one chart: the runs of one student, and the teachers they learned from."""
    students = [row for row in rows if row.runs[0].method is not None]
    teachers = [row for row in rows if row.runs[0].method is None]
    placed: set[str] = set()
    for net in dict.fromkeys(row.runs[0].net for row in students):
        group = [row for row in students if row.runs[0].net == net]
        asked = {run.teacher for row in group for run in row.runs if not row.alone}
        # A student may know its teacher by its file only: then it may be any of these.
        asked = {row.runs[0].net for row in teachers} if "" in asked else asked
        placed |= asked
        yield net, [row for row in teachers if row.runs[0].net in asked] + group
    if rest := [row for row in teachers if row.runs[0].net not in placed]:
        yield "teachers", rest


def _comparison(title: str, rows: Sequence[Row], styles: Mapping[str, int]) -> str:
    top1, loss, rate, wait = [], [], [], []
    for row in rows:
        style = styles.get(row.label, 0)
        top1.append(_line(row, "test_top1", style))
        loss.append(_line(row, "train_loss", style))
        rate.append(Bar(row.label, style, row.stats["images_per_second"].mean))
        wait.append(Bar(row.label, style, row.stats["wait_percent"].mean))
    shade = ("line: mean, shade: range of the seeds",) if any(len(row.runs) > 1 for row in rows) else ()
    figures = [
        curves(top1, "Test top-1, %", *shade),
        finish := _finish(top1),
        curves(loss, "Train loss", "each method's own sum of terms", digits=3, log=True),
        "<div>" if finish else "",  # three curves leave one cell of the grid to both bars
        bars(rate, "Training throughput", "images per second", "{:.0f}"),
        bars(wait, "Waiting for data", "share of an epoch's time", "{:.1f}%", full=100.0),
        "</div>" if finish else "",
    ]
    return f'<h3>{_e(title)}</h3><div class="charts">{"".join(figures)}</div>'


def _finish(lines: Sequence[Line]) -> str:
    """The end of long runs once more, where methods differ by less than a full axis can show."""
    last = max((line.points[-1][0] for line in lines if line.points), default=0)
    ends = [line for line in lines if line.points and line.points[-1][0] > 0.75 * last]
    ends = [line for line in ends if line.finite()[-1:] == [len(line.points) - 1]]
    near = max((line.points[-1][1] for line in ends), default=0.0) - 10
    kept = [line for line in ends if line.points[-1][1] >= near]
    if last < 20 or not kept:
        return ""
    cut = [sum(epoch <= 0.75 * last for epoch, _ in line.points) for line in kept]
    tails = [
        line._replace(points=line.points[i:], band=line.band[i:]) for line, i in zip(kept, cut, strict=True)
    ]
    left_out = [line.label for line in lines if line not in kept]
    return curves(
        tails, "Test top-1, %, last quarter", *([f"without {', '.join(left_out)}"] if left_out else [])
    )


def _line(row: Row, name: str, style: int) -> Line:
    seeds = [run.series(name) for run in row.runs]
    epochs = sorted(set(seeds[0]).intersection(*seeds))
    values = [[seed[epoch] for seed in seeds] for epoch in epochs]
    band = [(min(v), max(v)) for v in values] if len(seeds) > 1 else []
    return Line(row.label, style, [(e, sum(v) / len(v)) for e, v in zip(epochs, values, strict=True)], band)


def _details(name: str, run: Run) -> str:
    state = "" if run.summary is not None else f"unfinished (epoch {run.progress}), "
    measured = {key: value for key, value in (run.summary or {}).items() if key != "warnings"}
    facts = _facts("Environment", run.env) + _facts("Summary", measured)
    config = html.escape(yaml.safe_dump(run.config, sort_keys=False))  # which escapes what cannot be printed
    return (
        f"<details><summary>{_e(name)} <span>{_e(state)}{_e(run.folder)}</span></summary>"
        f'<div class="two">{facts}</div><h4>Resolved config</h4><pre>{config}</pre></details>'
    )


def _saving(run: Run) -> str:
    """What a run was spared by its teacher cache."""
    counts = [(run.summary or {}).get(f"cache_{name}") for name in ("hits", "misses")]
    hits, misses = (count if isinstance(count, int) else 0 for count in counts)
    if hits + misses == 0:
        return ""
    share = 100 * hits / (hits + misses)
    return f"{hits:,} of the teacher's {hits + misses:,} answers were read, {misses:,} computed: {share:.1f} % saved"


def _facts(title: str, found: Mapping[str, object]) -> str:
    told = {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in flat(found).items()}
    pairs = "".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in told.items())
    return f"<div><h4>{title}</h4><dl>{pairs}</dl></div>" if pairs else ""


def _key(style: int) -> str:
    line = f'<path class="line {styled(style)}" d="M0 4H22"/>'
    return f'<svg class="key" viewBox="0 0 22 8" aria-hidden="true">{line}</svg>'

"""A study's report: one HTML page that needs no other file, and the same as Markdown, from what the study collected."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from glioma_dist.files import remove_quietly, write_atomically
from glioma_dist.report.html_pages import render
from glioma_dist.report.study_plots import draw_plot

COLUMNS = (
    "model",
    "starting weights",
    "fine-tuning",
    "compared at",
    "article",
    "ours",
    "s.d.",
    "interval",
    "below the best",
    "p",
)
NUMBERS = range(4, 10)


def write_study_report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write <study>.json, <study>.html, <study>.md and, for figures, <study>.png into `folder`. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    name = results["study"]
    files = {f"{name}.json": json.dumps(results, indent=1).encode() + b"\n"}
    plot = draw_plot(results)
    if plot is None:
        remove_quietly(folder / f"{name}.png")  # of an earlier report
    else:
        files[f"{name}.png"] = plot
    files[f"{name}.md"] = markdown_page(results, plot is not None).encode()
    files[f"{name}.html"] = html_page(results, plot).encode()
    for file, content in files.items():
        write_atomically(folder / file, content)
    return [folder / file for file in files]


def row_texts(row: dict[str, Any]) -> list[str]:
    """A row's cells, in the order of COLUMNS."""
    article = " / ".join(f"{value:.3f}" for value in row["article"]) or row["article_says"] or "–"
    ours = row["status"] if row["mean"] is None else f"{row['mean']:.3f}"
    if row["mean"] is not None and row["status"] != "ok":
        ours += f" ({row['status']})"
    interval = "–" if row["interval"] is None else "{:.3f} to {:.3f}".format(*row["interval"])
    below = "best" if row["best"] else _number(row["below_best"])
    texts = [row["model"], row["start"], row["fine_tuning"], row["compared"], article, ours]
    return [*texts, _number(row["standard_deviation"]), interval, below, p_text(row["p_best"])]


def p_text(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def claim_text(claim: dict[str, Any]) -> str:
    """One sentence: what the article says, and what these runs do."""
    if claim["difference"] is None:
        return f"{claim['text']}: {claim['verdict']}."
    p_value = "" if claim["p_value"] is None else f", p {p_text(claim['p_value'])}"
    return f"{claim['text']}: {claim['verdict']} (difference {claim['difference']:+.3f}{p_value})."


def introduction(results: dict[str, Any]) -> list[str]:
    """What was run, in sentences."""
    protocol, metadata = results["protocol"], results["metadata"]
    counts = " / ".join(map(str, protocol["counts"]))
    sizes = ", ".join(f"{name} = {size}" for name, size in protocol["sizes"].items())
    data = "; ".join(f"{name}: {it['dataset']}, {it['num_samples']} images" for name, it in results["data"].items())
    lines = [
        f"Preset {results['preset']}: {sizes}; the target's images {protocol['target_size']}; "
        f"{protocol['num_repetitions']} repetitions of {counts} images, seed {protocol['seed']}; "
        f"Adam, learning rate {protocol['lr']:g}; {_schedule('pretraining', protocol['pretraining'])}; "
        f"{_schedule('fine-tuning', protocol['fine_tuning'])}.",
        f"{data or 'No data is here yet'}. {metadata.get('device', '')}, commit {metadata.get('commit')}.",
        "Scores are DiceScoreAV. s.d.: of the repetitions' means. Interval: "
        f"{protocol['level']:.0%}, by a bootstrap over images, each with its group. p: of the difference to the best "
        "row, by a paired t-test corrected for repetitions that share images (Nadeau and Bengio 2003) and for the "
        "number of rows (Holm); at 0.05 or more the rows are not told apart.",
    ]
    if results["shows"] == "epochs":
        lines.append(
            "The curves are of the validation images, each repetition as far as it was trained; the line is the mean "
            "of those that were still trained, the band their range."
        )
    if results["preset"] == "small":
        lines.append("A few steps at a quarter of the sizes: this shows that the study runs, not what its answer is.")
    return [*lines, *(f"{note}." for note in results["notes"])]


def _schedule(name: str, schedule: dict[str, Any]) -> str:
    limits = [f"{schedule['max_steps']} steps" if schedule["max_steps"] else f"{schedule['epochs']} epochs at most"]
    if schedule["patience"]:
        limits.append(f"until {schedule['patience']} epochs bring nothing better")
    return f"{name} {', '.join(limits)}, batch {schedule['batch_size']}"


def markdown_page(results: dict[str, Any], has_plot: bool) -> str:
    parts = [f"# {results['title']}", *introduction(results)]
    command = results["metadata"].get("command")
    if command:
        parts.append(f"```\n{command}\n```")
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'|'.join('---:' if n in NUMBERS else '---' for n in range(10))}|"]
    for row in results["rows"]:
        texts = [text.replace("|", "\\|") for text in row_texts(row)]
        lines.append(f"| {' | '.join(texts)} |")
    parts.append("\n".join(lines))
    if has_plot:
        parts.append(f"![{results['title']}]({results['study']}.png)")
    if results["claims"]:
        parts += ["## What the article says, and these runs", *(f"- {claim_text(each)}" for each in results["claims"])]
    remarks = [
        f"- {row['start']}: {row['article_says']}." for row in results["rows"] if row["article"] and row["article_says"]
    ]
    parts += remarks
    times = [run["seconds"] for run in results["runs"] if run["seconds"] is not None]
    parts.append(
        f"{len(times)} of {len(results['runs'])} runs are finished, in {sum(times) / 3600:.2f} hours; "
        f"the command also writes {results['study']}.html, with the config and time of each."
    )
    return "\n\n".join(parts) + "\n"


def html_page(results: dict[str, Any], plot: bytes | None) -> str:
    """One file with everything in it: no script, no style, no picture comes from elsewhere."""
    rows = results["rows"]
    return render(
        "study_page.html.jinja",
        title=results["title"],
        introduction=introduction(results),
        command=results["metadata"].get("command") or "",
        columns=COLUMNS,
        numbers=NUMBERS,
        rows=rows,
        table=[(row_texts(row), row) for row in rows],
        plot=None if plot is None else base64.b64encode(plot).decode(),
        claims=[claim_text(each) for each in results["claims"]],
        runs=results["runs"],
    )

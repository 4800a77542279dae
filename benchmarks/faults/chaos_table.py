"""The results of a campaign as JSON and as a Markdown table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glioma_dist.files import write_atomically, write_json_atomically

WORDS = {0: "finished", 1: "launcher", 2: "refused", 69: "unavailable", 75: "stopped", -9: "killed", -15: "ended"}
MAX_LINE = 150


def write_tables(folder: Path, content: dict[str, Any]) -> None:
    """Write chaos.json and chaos.md."""
    write_json_atomically(folder / "chaos.json", content)
    write_atomically(folder / "chaos.md", markdown(content) + "\n")


def summary(content: dict[str, Any]) -> str:
    """One paragraph of counts and bounds."""
    faults, runs = content["faults"], content["runs"]
    passed = sum(not fault["wrong"] for fault in faults)
    equal = sum(not run["wrong"] for run in runs)
    changed = sum(len(run["segments"]) > 1 for run in runs)
    ends = [fault["seconds_to_end"] for fault in faults]
    starts = [fault["seconds_to_restart"] for fault in faults if fault["seconds_to_restart"] is not None]
    flags = " --forked-launchers" if content["forked_launchers"] else ""
    return (
        f"{passed} of {len(faults)} faults pass, {equal} of {len(runs)} trainings equal their reference bit for bit "
        f"({changed} of them with a changed number of processes). Time to end after a fault: at most "
        f"{max(ends, default=0):.1f} s; from a start to its first batch: at most {max(starts, default=0):.1f} s. "
        f"`python benchmarks/chaos.py --faults {content['count']} --seed {content['seed']}{flags} --out FOLDER`, "
        f"commit {content['commit']}, {content['hardware']}, {content['minutes']} minutes, "
        f"full disk by {content['disk']}."
    )


def markdown(content: dict[str, Any]) -> str:
    """The summary, a table row for each fault, and a line for each training."""
    lines = [
        summary(content),
        "",
        "| | Fault | Moment | Processes | Exit codes, status.json | End (s) | Restart (s) | Message | Result |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for fault in content["faults"]:
        codes = ", ".join(f"{code} {WORDS.get(code, '')}".strip() for code in dict.fromkeys(fault["codes"]))
        code = fault["state"]["code"]
        state = f"{fault['state']['state'] or 'none'}{'' if code is None else f' {code}'}"
        restart = "" if fault["seconds_to_restart"] is None else f"{fault['seconds_to_restart']:.1f}"
        whom = f" ({fault['whom']})" if fault["whom"] else ""
        how = fault["launcher"] or "forked"
        result = "FAILED: " + "; ".join(fault["wrong"]) if fault["wrong"] else "passed"
        lines.append(
            f"| {fault['number']} | {fault['name']}{whom} | {fault['when']}, at step {fault['step']} | "
            f"{fault['processes']}, {how} | {codes}; {state} | {fault['seconds_to_end']:.1f} | {restart} | "
            f"{_cell(fault['line'], content)} | {_cell(result, content)} |"
        )
    lines.append("")
    for number, run in enumerate(content["runs"], 1):
        used = ", ".join(f"{processes} to step {step}" for processes, step in run["segments"])
        result = "FAILED: " + "; ".join(run["wrong"]) if run["wrong"] else "equal, bit for bit"
        faults = ", ".join(map(str, run["faults"])) or "none"
        lines.append(f"- Training {number}: {run['starts']} starts, faults {faults}; processes: {used}; {result}.")
    return "\n".join(lines)


def _cell(text: str, content: dict[str, Any]) -> str:
    """A text for a table: short, without the campaign's folder."""
    text = text.replace(content["folder"] + "/", "").replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 1]}…"

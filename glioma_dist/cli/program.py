"""The program `glioma-dist`, also started by `python -m glioma_dist`: find the command and run it.

A command is a row of `COMMANDS`. Its module is imported when it is called. Each source of data in the registry is a
command `convert NAME`, also one that another distribution declares.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import glioma_dist
from glioma_dist.cli.arguments import parse
from glioma_dist.cli.command import Command
from glioma_dist.data.convert.source_names import DECLARED as SOURCES
from glioma_dist.distributed.exit_codes import VARIABLE
from glioma_dist.distributed.launcher import alike_on_a_machine
from glioma_dist.distributed.leaving import end_quickly
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import ExitCode, InputError, one_line

NAME = "glioma-dist"
CONVERT = "convert"
SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Entry:
    """Where a command is defined, and its summary."""

    target: str
    """module:attribute"""
    summary: str

    def load(self) -> Command:
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class SourceCommand(Entry):
    """A command of a source of data: of its own, or, where `target` is the source's name, that of all sources."""

    def load(self) -> Command:
        if ":" in self.target:
            return super().load()
        from glioma_dist.cli.sources import command_of

        return command_of(self.target)


COMMANDS = {
    "train": Entry("glioma_dist.cli.train:TRAIN", "Train a U-Net on shards."),
    "evaluate": Entry("glioma_dist.cli.evaluate:EVALUATE", "Score a checkpoint on shards with Dice."),
    "predict": Entry("glioma_dist.cli.predict:PREDICT", "Segment the cells of new images."),
    "growth": Entry("glioma_dist.cli.growth:GROWTH", "Compute growth curves and doubling times."),
    "report": Entry("glioma_dist.cli.report:REPORT", "Write one HTML page about a prediction."),
    "app": Entry("glioma_dist.cli.app:APP", "Segment images in the browser."),
    "download livecell": Entry("glioma_dist.cli.download:LIVECELL", "Download LIVECell (non-commercial licence)."),
    "download glioma-c6": Entry("glioma_dist.cli.download:GLIOMA_C6", "Download Glioma C6 (non-commercial licence)."),
    **{f"convert {each.name}": SourceCommand(each.command or each.name, each.summary) for each in SOURCES},
    "convert coco": Entry("glioma_dist.cli.convert:COCO", "Convert a COCO file and its images to shards."),
    "convert folder": Entry("glioma_dist.cli.convert_folder:FOLDER", "Convert images and their masks to shards."),
    "shards inspect": Entry("glioma_dist.cli.shards:INSPECT", "List a folder of shards; draw its masks on the images."),
    "shards index": Entry("glioma_dist.cli.shards:INDEX", "Write the index of plain WebDataset tars."),
    "shards report": Entry("glioma_dist.cli.data_report:DATA_REPORT", "Write one HTML page about shards."),
    "shards verify": Entry("glioma_dist.cli.shards:VERIFY", "Check every byte of a folder of shards."),
    "run-status": Entry("glioma_dist.cli.run_status:RUN_STATUS", "Print how a run stands, for people and job scripts."),
    "verify": Entry("glioma_dist.cli.verify:VERIFY", "Compute stretches of a run again, and compare."),
    "encoders": Entry("glioma_dist.cli.encoders:ENCODERS", "List the encoders with their costs."),
    "plan": Entry("glioma_dist.cli.plan:PLAN", "Estimate the memory of a step, and what fits a GPU."),
    "bench resolution": Entry("glioma_dist.cli.bench:RESOLUTION", "Measure steps at several image sizes."),
    "bench predict": Entry("glioma_dist.cli.bench:PREDICTION", "Measure the segmentation of one image."),
    "bench gpu": Entry("glioma_dist.cli.bench:PROOF", "Check that training works on this machine's GPUs."),
    "bench scaling": Entry("glioma_dist.cli.bench:SCALING", "Measure steps by the number of GPUs."),
    "bench spatial-parallel": Entry("glioma_dist.cli.bench:SPATIAL_PARALLEL", "Measure spatial parallelism."),
    "export onnx": Entry("glioma_dist.cli.export:ONNX", "Write a checkpoint as one ONNX file."),
    "export bioimageio": Entry("glioma_dist.cli.export:BIOIMAGEIO", "Write a checkpoint as a bioimage.io package."),
    "merge": Entry("glioma_dist.cli.merge:MERGE", "Join the sharded files of an FSDP2 checkpoint."),
    "demo": Entry("glioma_dist.cli.demo:DEMO", "Draw cells, train, evaluate and predict, in minutes."),
    "reproduce": Entry("glioma_dist.cli.reproduce:REPRODUCE", "Reproduce the article's tables and figures."),
    "configs": Entry("glioma_dist.cli.configs:CONFIGS", "List the files for accelerate launch, SLURM and Kubernetes."),
}


def main() -> None:
    """Run the command that this process's arguments name: the console script."""
    if sys.argv[1:2] == ["run-status"]:  # which reads the codes of a launch, and is no process of it
        os.environ.pop(VARIABLE, None)
    run_command(lambda: run(sys.argv[1:]))
    end_quickly(ExitCode.FINISHED)


def run_script(name: str) -> None:
    """Run the command `name`, for a script of one command such as train.py."""
    run_command(lambda: run_one(name, sys.argv[1:], sys.argv[0].rpartition("/")[2]))


def run(words: Sequence[str]) -> None:
    """Run the command that `words` begin with, one or two words, with the rest as its flags.

    Raises InputError for an unknown command.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and entry_of(name) is not None:
            run_one(name, words[length:], f"{NAME} {name}")
            return
    group = words[0] if words and any(each.startswith(f"{words[0]} ") for each in COMMANDS) else ""
    rest = list(words[1:] if group else words)
    if not rest:
        print(overview(group), file=sys.stderr, end="")
        sys.exit(2)
    if rest[0] in ("-h", "--help"):
        print(overview(group), end="")
    elif not group and rest[0] in ("-V", "--version"):
        print(f"{NAME} {glioma_dist.__version__}")
    elif not group and rest[0] == "--print-completion":
        _print_completion(rest[1:])
    else:
        raise InputError(_unknown(group, rest))


def run_one(name: str, words: Sequence[str], prog: str) -> None:
    """Run the command `name` with its flags. prog: the name of the program in its help."""
    command = entry_of(name).load()
    with alike_on_a_machine():
        config = parse(command.config, words, prog, command.examples)
    command.check(config)
    command.run(config)


def entry_of(name: str) -> Entry | None:
    """Return the command of this name: a row of `COMMANDS`, or `convert` and a source by another of its names or of
    another distribution; None for an unknown one. Raises BrokenEntryError of the registry."""
    group, _, source = name.partition(" ")
    if name in COMMANDS or group != CONVERT or not source or source.startswith("-"):
        return COMMANDS.get(name)
    from glioma_dist.registry import UnknownNameError, sources

    try:
        entry = sources.find(source)
    except UnknownNameError:
        return None
    return COMMANDS.get(f"{CONVERT} {entry.name}") or SourceCommand(entry.name, entry.summary)


def overview(group: str = "") -> str:
    """Return the help of the program, or of a group of commands such as convert."""
    prefix = f"{group} " if group else ""
    rows = {name: entry.summary for name, entry in COMMANDS.items() if name.startswith(prefix)}
    if group == CONVERT:
        from glioma_dist.registry import sources

        for each in sources.entries():
            summary = each.summary or f"Of {each.distribution or 'this process'}."
            rows.setdefault(f"{CONVERT} {each.name}", summary)
    width = max(map(len, rows)) + 2
    lines = [f"usage: {NAME} {prefix}COMMAND [FLAGS]", ""]
    if not group:
        lines += ["Trains U-Nets that segment cells in phase-contrast images, on one GPU or on many.", ""]
    lines += ["commands:", *(f"  {name:<{width}}{summary}" for name, summary in rows.items()), ""]
    if not group:
        shells = ", ".join(SHELLS)
        lines += [
            "flags:",
            f"  {'-h, --help':<{width}}Show this text. After a command: its flags.",
            f"  {'-V, --version':<{width}}Show the version.",
            f"  {'--print-completion':<{width}}Print a script that completes commands and flags in {shells}.",
            "",
        ]
    shown = [next(iter(rows)) + " --help"] if group else ["demo", "train --help", "convert --help"]
    lines += ["examples:", *(f"  {NAME} {each}" for each in shown), ""]
    return "\n".join(lines)


def _unknown(group: str, rest: Sequence[str]) -> str:
    """Return the message for an unknown command, with the nearest known one."""
    own = [name.removeprefix(f"{group} ") for name in COMMANDS if name.startswith(f"{group} ".lstrip())]
    known = {name: name for name in own}
    if not group:
        known |= {each: each for each in ("--help", "--version", "--print-completion")}
        known |= {name.split()[0]: name.split()[0] for name in own}
        for last in {name.rpartition(" ")[2] for name in own if " " in name}:
            if last not in own:
                known[last] = " or ".join(name for name in own if name.endswith(f" {last}"))
    typed = rest[0].lower()
    near = difflib.get_close_matches(" ".join(rest[:2]).lower(), known, n=1, cutoff=0.75)
    near = near or [each for each in known if sorted(each) == sorted(typed)]  # two letters in the wrong order
    near = near or difflib.get_close_matches(typed.replace("_", "-"), known, n=1, cutoff=0.6)
    what = "flag" if typed.startswith("-") else "command"
    prefix = f"{group} " if group else ""
    meant = f"; did you mean {prefix}{known[near[0]]}?" if near else ""
    return f"unknown {what} {prefix}{one_line(rest[0], 80)}{meant} ({NAME} {prefix}--help lists the commands)"


def _print_completion(words: Sequence[str]) -> None:
    if len(words) != 1 or words[0] not in SHELLS:
        raise InputError(f"--print-completion: give a shell, one of {', '.join(SHELLS)}")
    from glioma_dist.cli.completion import print_completion

    print_completion(NAME, {name: (entry.load().config, entry.summary) for name, entry in COMMANDS.items()}, words[0])

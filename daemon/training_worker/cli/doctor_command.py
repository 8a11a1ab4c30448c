"""The command doctor: what a host has and lacks, as text or as JSON."""

import os
from itertools import groupby
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from training_worker.cli.terminal import printable
from training_worker.doctor.checks import examine
from training_worker.doctor.findings import Finding, State, has_error
from training_worker.settings import load_settings

STYLES = {State.OK: "green", State.WARNING: "yellow", State.ERROR: "red"}
STATE_WIDTH = max(map(len, State))
INDENT = "  "


def show_findings(config: Path | None, *, as_json: bool) -> int:
    """Print what all checks find; return the exit status: 1 if anything is an error. Raises `SettingsError`."""
    settings = load_settings(config, os.environ)
    # Engines take a while to load; a pipe gets no status.
    with Console(stderr=True).status("checking the host, its engines and the broker"):
        findings = list(examine(settings))
    if as_json:
        # "mend" is the former name of "fix", for one release more.
        found = [msgspec.to_builtins(finding) | {"mend": finding.fix} for finding in findings]
        print(msgspec.json.encode(found).decode())
    else:
        _print_table(findings)
    return 1 if has_error(findings) else 0


def _print_table(findings: list[Finding]) -> None:
    # Lines are wrapped by the terminal alone, so that a command can be copied whole.
    console = Console(soft_wrap=True, highlight=False)
    width = max(len(finding.name) for finding in findings)
    for group, members in groupby(findings, key=lambda finding: finding.group):
        console.print(Text(group, style="bold"))
        for finding in members:
            console.print(_line(finding, width))
            if finding.fix is not None:
                console.print(Text(f"{INDENT * 3}fix: {printable(finding.fix)}"))


def _line(finding: Finding, width: int) -> Text:
    first, *others = printable(finding.found).splitlines() or [""]
    more = "".join(f"\n{INDENT * 3}| {line}" for line in others)
    state = (f"{finding.state:<{STATE_WIDTH}}", STYLES[finding.state])
    return Text.assemble(f"{INDENT}{finding.name:<{width}}{INDENT}", state, f"{INDENT}{first}{more}")

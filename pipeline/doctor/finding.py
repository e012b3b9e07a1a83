"""What a check of the doctor looks at, and what it says."""

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import Experiment
from pipeline.jobs.profiles import Cluster


@dataclass(frozen=True)
class Finding:
    check: str
    state: Literal["ok", "problem", "advice"]
    says: str
    do: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Patient:
    """What is examined."""

    experiment: Experiment  # its folders absolute
    named: bool  # by the person; else the defaults
    cluster: Cluster | None

    @property
    def output(self) -> Path:
        return Path(self.experiment.output)


Check = Callable[[Patient], Iterable[Finding]]


def render(finding: Finding, width: int = 100) -> str:
    """A finding as lines of at most `width` columns."""
    head = f"{finding.state:<8} {finding.check:<9} "
    text = textwrap.fill(finding.says, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
    if finding.do:
        do = textwrap.fill(finding.do, width, initial_indent=" " * len(head) + "-> ", subsequent_indent=" " * (len(head) + 3))
        text = f"{text}\n{do}"
    return text

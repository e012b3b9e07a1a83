"""What travels with a job: the project's own files, from a checkout only those that git tracks, and its experiment."""

import fnmatch
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tood.errors import ConfigError

PARTS = ("tood", "pipeline", "experiments")  # what a job needs of the project
LIMIT = 20 << 20  # bytes; the project is a twentieth of it, and Ray refuses 100 MiB after packing them
LISTED = 5  # files that a refusal names


@dataclass(frozen=True)
class Package:
    """Files to send, by their path in the job's folder, and those made for the job."""

    root: Path
    files: tuple[str, ...] = ()
    made: Mapping[str, bytes] = None
    left_out: tuple[str, ...] = ()  # of the project, but not tracked by git

    def sizes(self) -> dict[str, int]:
        return {name: (self.root / name).stat().st_size for name in self.files} | {
            name: len(content) for name, content in (self.made or {}).items()
        }

    def write(self, folder: Path) -> None:
        for name in self.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, folder / name)
        for name, content in (self.made or {}).items():
            (folder / name).write_bytes(content)


def project_root() -> Path:
    """The folder that holds the packages: a checkout's root, or where they are installed."""
    return Path(__file__).resolve().parents[2]


def pack(carry: bool, made: Mapping[str, bytes], excludes: Iterable[str] = (), root: Path | None = None) -> Package:
    """`made` and, to `carry`, the project's files but for those that match a pattern. Raises ConfigError for too much."""
    root = root or project_root()
    if not carry:
        return Package(root, made=made)
    tracked = _git(root, "ls-files", "-z", "--", *PARTS)
    names = [name for name in (_walk(root) if tracked is None else tracked) if (root / name).is_file()]
    files = tuple(name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in excludes))
    left_out = () if tracked is None else _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *PARTS)
    package = Package(root, files, made, tuple(left_out or ()))
    sizes = package.sizes()
    if (total := sum(sizes.values())) > LIMIT:
        largest = sorted(sizes, key=sizes.get, reverse=True)[:LISTED]
        named = ", ".join(f"{name} ({megabytes(sizes[name])})" for name in largest)
        raise ConfigError(
            f"the job would carry {megabytes(total)}, more than {megabytes(LIMIT)}; the largest files are {named}; "
            "leave some out by --exclude PATTERN"
        )
    return package


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _walk(root: Path) -> list[str]:
    files = (path for part in PARTS for path in (root / part).rglob("*") if path.suffix in (".py", ".yaml", ".typed"))
    return sorted(str(path.relative_to(root)) for path in files)


def _git(root: Path, *arguments: str) -> list[str] | None:
    """Names that git lists; None where `root` is not the top of a repository."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return sorted(filter(None, done.stdout.split("\0"))) if done.returncode == 0 else None

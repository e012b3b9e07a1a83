"""Bring files of a source into a place of the cache: whole, hashed, in parallel, going on where a killed process stopped."""

import contextlib
import hashlib
import os
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.data.manifest import Manifest, PackedFile
from pipeline.data.room import Place
from pipeline.data.source import Source
from pipeline.errors import ChangedObjectError, IntegrityError, MissingObjectError, StorageError
from pipeline.storage.store import CHUNK, ObjectInfo

FILES_AT_ONCE, SHARDS_AT_ONCE = 16, 4
SAY_EVERY = 5.0  # seconds
STEP = 1 << 28  # bytes by which a reservation grows where the source does not say how much is to come


class Fetch:
    """One process' work on one place, alone under its lock."""

    def __init__(self, source: Source, manifest: Manifest | None, place: Place, limit: int, say: Callable[[str], None]):
        self.source, self.manifest, self.place, self.limit = source, manifest, place, limit
        self.have = {name: record for name, record in place.journal().items() if place.intact(name, record)}
        self.progress = _Progress(source.url, say)
        self._base = sum(record.size for record in self.have.values())
        self._reserved, self._growing = 0, threading.Lock()
        self._stop = threading.Event()

    def bring(self, names: Collection[str], announced: dict[str, ObjectInfo] | None = None) -> list[str]:
        """Have all of these files; the names of those that the source does not have.

        announced: what the source says of its files, where it has no manifest; None where it cannot say.
        """
        wanted = [name for name in names if name not in self.have]
        if not wanted:
            return []
        known_names = self.manifest.files if self.manifest else announced
        if known_names is not None and (missing := [name for name in wanted if name not in known_names]):
            return missing
        if self.manifest:
            return self._bring_packed(wanted)
        infos = {name: announced[name] if announced else ObjectInfo(None, None) for name in wanted}
        known = sum(info.size or 0 for info in infos.values())
        self._reserve(known)
        self.progress.start(len(wanted), known)
        return self._in_parallel(FILES_AT_ONCE, lambda name: self._file(name, infos[name]), wanted)

    def damaged(self, names: Iterable[str]) -> list[str]:
        """Those whose content is no longer what was fetched; they are forgotten, so that `bring` gets them anew."""
        known = [name for name in names if name in self.have]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
            hashes = list(pool.map(lambda name: _sha256(self.place.files / name), known))
        bad = [name for name, found in zip(known, hashes, strict=True) if found != self.have[name].sha256]
        for name in bad:
            del self.have[name]
        return bad

    def finish(self) -> None:
        """All that was wanted is there: what lies half done is of no use any more."""
        for left in self.place.partial.iterdir():
            left.unlink()
        if self._reserved:
            self.place.reserve(sum(record.size for record in self.have.values()), 0, self.limit)
        self.progress.end()

    def _bring_packed(self, wanted: list[str]) -> list[str]:
        files = self.manifest.files
        numbers = sorted({files[name].shard for name in wanted} - {None})
        members: dict[int, dict[str, PackedFile]] = {number: {} for number in numbers}
        for name, entry in files.items():
            if entry.shard in members:
                members[entry.shard][name] = entry
        alone = [name for name in wanted if files[name].shard is None]
        shards, plain = [self.manifest.shards[number] for number in numbers], sum(files[name].size for name in alone)
        self.progress.start(len(alone) + sum(map(len, members.values())), plain + sum(shard.size for shard in shards))
        unpacked = sum(entry.size for part in members.values() for entry in part.values())
        lying = max((shard.size for shard in shards), default=0) * min(SHARDS_AT_ONCE, len(shards))  # shards beside their files
        self._reserve(plain + unpacked + lying)
        missing = self._in_parallel(SHARDS_AT_ONCE, lambda number: self._shard(number, members[number]), numbers)
        return missing + self._in_parallel(FILES_AT_ONCE, lambda name: self._file(name, files[name]), alone)

    def _file(self, name: str, about: PackedFile | ObjectInfo) -> None:
        sha256, version = (about.sha256, None) if isinstance(about, PackedFile) else (None, about.version)
        partial, found = self._download(name, about.size, sha256, version)
        self.have[name] = self.place.keep(name, partial, found)
        self.progress.add(files=1)

    def _shard(self, number: int, members: dict[str, PackedFile]) -> None:
        shard = self.manifest.shards[number]
        if all(name in self.have for name in members):
            return
        where, left = f"{self.source.url}/{shard.name}", dict(members)
        try:
            partial, _ = self._download(shard.name, shard.size, shard.sha256)
        except MissingObjectError as error:
            raise IntegrityError(f"{error}, but the manifest names it; pack the data anew") from None
        try:
            with tarfile.open(partial, "r:") as archive:
                for member in archive:
                    # Names come from the manifest, which was checked; nothing is extracted by what the archive says.
                    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name not in left:
                        raise IntegrityError(f"{where}: holds {member.name!r:.80}, which is no file of its manifest; pack it anew")
                    entry = left.pop(member.name)
                    if member.name not in self.have:
                        self._unpack(archive.extractfile(member), member.name, entry, where)
        except (tarfile.TarError, EOFError) as error:
            raise IntegrityError(f"{where}: not a readable tar file ({error}); pack the data anew") from None
        if left:
            raise IntegrityError(f"{where}: lacks {next(iter(left))!r:.80}, which its manifest names; pack the data anew")
        partial.unlink()

    def _unpack(self, content: Any, name: str, entry: PackedFile, where: str) -> None:
        self._check_stop()
        partial, digest = self.place.partial / secrets.token_hex(16), hashlib.sha256()
        try:
            written = 0
            with partial.open("xb") as file:
                while chunk := content.read(min(CHUNK, entry.size - written + 1)):
                    written += len(chunk)
                    if written > entry.size:  # a few bytes of a tar can stand for a disk full of them
                        raise IntegrityError(f"{where}: {name} is larger than the {entry.size} bytes of its manifest; pack it anew")
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != entry.sha256:
                raise IntegrityError(
                    f"{where}: {name} has the sha256 {digest.hexdigest()}, its manifest says {entry.sha256}; pack it anew"
                )
            self.have[name] = self.place.keep(name, partial, entry.sha256)
        finally:
            partial.unlink(missing_ok=True)
        self.progress.add(files=1)

    def _download(self, name: str, size: int | None, sha256: str | None, version: str | None = None) -> tuple[Path, str]:
        """A whole file at a place of its own, and its hash; what an earlier process had of the same version is not read again."""
        known = sha256 or version  # without either, nobody knows what a part found here is a part of
        mark = hashlib.sha256(f"{name}\0{known or secrets.token_hex(16)}".encode()).hexdigest()[:32]
        partial = self.place.partial / mark
        for last in (False, True):
            try:
                found = self._continue(partial, name, size, version)
            except ChangedObjectError:
                if last:
                    raise
                partial.unlink(missing_ok=True)
                continue
            length = partial.stat().st_size
            if (size is None or length == size) and sha256 in (None, found):
                return partial, found
            partial.unlink()
        raise IntegrityError(
            f"{self.source.url}/{name}: {length} bytes with sha256 {found}, announced are {size} bytes"
            f"{f' with sha256 {sha256}' if sha256 else ''}; the source is damaged or was changed: pack it anew"
        )

    def _continue(self, partial: Path, name: str, size: int | None, version: str | None) -> str:
        digest, start = hashlib.sha256(), 0
        if partial.exists():
            with partial.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    start += len(chunk)
        self.progress.add(size=start)
        if start and start == size:
            return digest.hexdigest()
        with partial.open("ab") as file:
            for chunk in self.source.chunks(name, start, version):
                self._check_stop()
                digest.update(chunk)
                file.write(chunk)
                start += len(chunk)
                if size is not None and start > size:
                    break  # the caller compares the length
                self.progress.add(size=len(chunk))
                if size is None:
                    self._grow()
        return digest.hexdigest()

    def _reserve(self, more: int) -> None:
        self._reserved = self._base + more
        self.place.reserve(self._reserved, more, self.limit)

    def _grow(self) -> None:
        """Reserve more where sizes are not known beforehand."""
        with self._growing:
            if self._base + self.progress.size > self._reserved:
                self._reserved = self._base + self.progress.size + STEP
                self.place.reserve(self._reserved, STEP, self.limit)

    def _in_parallel(self, at_once: int, work: Callable[[Any], None], items: Collection[Any]) -> list[str]:
        """Work on all items; those whose files the source turns out not to have. The first other error ends it."""
        missing: list[Any] = []
        errors: list[BaseException] = []

        def guarded(item: Any) -> None:
            try:
                self._check_stop()
                work(item)
            except MissingObjectError:
                missing.append(item)
            except _StoppedError:
                pass
            except OSError as error:
                errors.append(StorageError(f"{error.filename or self.place.folder}: {error.strerror or error}"))
                self._stop.set()
            except BaseException as error:
                errors.append(error)
                self._stop.set()

        pool = ThreadPoolExecutor(max(1, min(at_once, len(items))))
        try:
            for done in [pool.submit(guarded, item) for item in items]:
                done.result()
        except BaseException:  # a person's Ctrl-C
            self._stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if errors:
            raise errors[0]
        return sorted(missing)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """Another download failed, or a person ended it."""


class _Progress:
    """A line every few seconds. Threads may share it."""

    def __init__(self, url: str, say: Callable[[str], None]):
        self.url, self.say, self.lock = url, say, threading.Lock()
        self.files = self.size = self.all_files = self.all_size = 0
        self.began = self.said = time.monotonic()

    def start(self, files: int, size: int) -> None:
        with self.lock:
            self.all_files += files
            self.all_size += size

    def add(self, files: int = 0, size: int = 0) -> None:
        with self.lock:
            self.files += files
            self.size += size
            if time.monotonic() - self.said < SAY_EVERY:
                return
            self.said = time.monotonic()
            line = self._line()
        self.say(line)

    def end(self) -> None:
        if self.files or self.size:
            self.say(f"{self._line()}, {time.monotonic() - self.began:.1f} s")

    def _line(self) -> str:
        of_all = f" of {self.all_size / 1e6:,.1f}" if self.all_size else ""
        rate = self.size / 1e6 / max(time.monotonic() - self.began, 1e-3)
        return f"{self.url}: {self.size / 1e6:,.1f}{of_all} MB, {self.files:,} of {self.all_files:,} files, {rate:,.0f} MB/s"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with contextlib.suppress(OSError), path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

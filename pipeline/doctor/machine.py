"""The doctor's checks of this machine: versions, GPU, disk, the experiment's data and initial weights."""

import posixpath
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pipeline.data.manifest import read_manifest
from pipeline.data.source import is_remote, open_source
from pipeline.doctor.finding import Finding, Patient
from pipeline.errors import MissingObjectError
from pipeline.tracking.facts import redact
from tood.config import DataConfig

SHOWN = ("torch", "torchvision", "ray", "mlflow", "numpy")
FREE_BYTES = 2e9, 20e9  # of a disk: below the first a problem, below the second advice
SHARED_BYTES = 512e6  # of /dev/shm, where Ray and data loaders hand tensors over


def versions(patient: Patient) -> Iterator[Finding]:
    import platform

    from packaging.requirements import Requirement

    unfit = []
    for line in metadata.requires("tood") or ():
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            has = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            has = "none"
        if has == "none" or not wanted.specifier.contains(has, prereleases=True):
            unfit.append(f"{wanted.name} {has} (needs {wanted.specifier or 'any'})")
    if unfit:
        yield Finding("versions", "problem", ", ".join(unfit), "install the locked versions: pip install -r requirements.lock")
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN if _installed(name))
    yield Finding("versions", "ok", f"tood {metadata.version('tood')}, Python {platform.python_version()}, {shown}")


def gpu(patient: Patient) -> Iterator[Finding]:
    import torch

    wanted = (patient.experiment.ray.gpus_per_worker or 0) > 0 and not patient.cluster and not patient.experiment.ray.address
    if torch.cuda.is_available():
        named = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        yield Finding("gpu", "ok", ", ".join(f"{device.name} ({device.total_memory / 1e9:.0f} GB)" for device in named))
    elif shutil.which("nvidia-smi"):
        yield Finding("gpu", "problem", f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it",
                      "install a torch built for this driver's CUDA")  # fmt: skip
    elif wanted:
        yield Finding("gpu", "problem", "ray.gpus_per_worker asks for GPUs, this machine has none",
                      "set ray.gpus_per_worker=0, or name a cluster")  # fmt: skip
    else:
        yield Finding("gpu", "ok", "none here: what runs on this machine runs on its CPU")


def disk(patient: Patient) -> Iterator[Finding]:
    place = next(folder for folder in (patient.output, *patient.output.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    state = "problem" if free < FREE_BYTES[0] else "advice" if free < FREE_BYTES[1] else "ok"
    do = "" if state == "ok" else "free space, or set output and storage.url to another place"
    yield Finding("disk", state, f"{free / 1e9:.0f} GB free at {place}", do)
    shared = Path("/dev/shm")
    if shared.exists() and shutil.disk_usage(shared).total < SHARED_BYTES:
        yield Finding("disk", "advice", f"/dev/shm has {shutil.disk_usage(shared).total / 1e6:.0f} MB",
                      "give a container more by --shm-size, or set data.workers=0")  # fmt: skip


def data(patient: Patient) -> Iterator[Finding]:
    """Whether the files are there; `tood data check` reads them whole."""
    if not patient.named:
        return
    config = patient.experiment.data
    if config.source == "digits":
        yield Finding("data", "ok", f"the scanned digits, made in {config.root} on first use")
        return
    if is_remote(config.root):
        yield _remote_data(config)
        return
    missing = []
    for split in (config.train, config.val):
        for path in (Path(config.root) / split.annotations, Path(config.root) / split.images):
            if not path.exists() or (path.is_dir() and next(path.iterdir(), None) is None):
                missing.append(str(path))
    if not missing:
        yield Finding("data", "ok", f"annotations and images of both splits in {config.root}")
    elif patient.cluster:
        yield Finding("data", "advice", f"{missing[0]} is not on this machine",
                      f"look from inside the cluster: tood submit doctor EXPERIMENT --cluster {patient.cluster.name}")  # fmt: skip
    else:
        yield Finding("data", "problem", f"missing or empty: {', '.join(missing)}", "set data.root, or put the files there")


def _remote_data(config: DataConfig) -> Finding:
    """Whether an address has both annotation files; the images that they list are not looked for."""
    source = open_source(config.root)
    manifest = read_manifest(source)
    missing = []
    for split in (config.train, config.val):
        name = posixpath.normpath(split.annotations)
        try:
            there = name in manifest.files if manifest else bool(source.info(name))
        except MissingObjectError:
            there = False
        if not there:
            missing.append(f"{redact(source.url)}/{name}")
    if missing:
        return Finding("data", "problem", f"missing: {', '.join(missing)}", "set data.root, or put the files there")
    return Finding("data", "ok", f"annotations of both splits at {redact(source.url)}{', packed' if manifest else ''}")


def weights(patient: Patient) -> Iterator[Finding]:
    """Whether the weights that training starts from are at hand."""
    if not patient.named:
        return
    init = patient.experiment.init
    if init == "imagenet":
        import torch
        import torchvision

        weights = torchvision.models.get_model_weights(patient.experiment.model.backbone.network).IMAGENET1K_V1
        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        if file.exists():
            yield Finding("init", "ok", f"ImageNet weights in {file}")
        else:
            yield Finding("init", "advice", "ImageNet weights are not in torch's cache; the first run downloads them",
                          f"where there is no way out, put {file.name} into {file.parent}, or set init=none")  # fmt: skip
    elif init != "none" and not init.startswith("models:/"):
        if Path(init).expanduser().exists():
            yield Finding("init", "ok", init)
        elif patient.cluster or patient.experiment.ray.address:
            yield Finding("init", "advice", f"{init} is not on this machine", "see that it is on every node")
        else:
            yield Finding("init", "problem", f"{init} does not exist", "give a model folder, models:/NAME@alias, imagenet or none")


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False

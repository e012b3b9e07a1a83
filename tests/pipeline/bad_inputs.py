"""A folder of sound things and of faulty ones, for tests of what the command says to them."""

import json
import shutil
from pathlib import Path

from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.tracking.access import connect
from tests.tiny import COLOURS, write_experiment
from tood.checkpoint import ModelInfo, save_model
from tood.config import identity
from tood.detectors import build_detector

FILES = {
    "tabs.yaml": "train:\n\tepochs: 3\n",
    "tagged.yaml": "train: !!python/object/apply:os.system [exit]\n",
    "list.yaml": "- train\n",
    "ring.yaml": "extends: again\n",
    "again.yaml": "extends: ring\n",
    "results.json": '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": NaN}]',
    "strangers.json": '[{"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
    "cut.json": '[{"image_id": 1, "cat',
    "weights.pth": "\x80\x04pickled",
    "photo.jpg": "\xff\xd8\xff\xe0 not much of a photograph",
}


def cut_annotations(data: Path) -> None:
    file = data / "train.json"
    file.write_bytes(file.read_bytes()[:200])


def edited(split: str, edit):
    def damage(data: Path) -> None:
        content = json.loads((data / f"{split}.json").read_text())
        edit(content)
        (data / f"{split}.json").write_text(json.dumps(content))

    return damage


DAMAGES = {  # data sets, each a copy of the sound one with one fault
    "cut": cut_annotations,
    "other_classes": edited("val", lambda content: content["categories"][0].update(name="pink")),
    "nothing_to_learn": edited("train", lambda content: content["annotations"].clear()),
    "no_images": edited("train", lambda content: (content["images"].clear(), content["annotations"].clear())),
    "bad_box": edited("train", lambda content: content["annotations"][0].update(bbox=[1, 1, -4, 3])),
    "missing_image": lambda data: (data / "train/3.png").unlink(),
    "broken_image": lambda data: (data / "val/3.png").write_bytes((data / "val/3.png").read_bytes()[:500]),
}


def make_place(folder: Path) -> Path:
    """tiny.yaml and its data, `model`, faulty copies of both, FILES, and an MLflow database, all in `folder`."""
    experiment = experiment_of(load_values(str(write_experiment(folder))))
    for name, text in FILES.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    for name, damage in DAMAGES.items():
        damage(shutil.copytree(folder / "data", folder / name))
    (folder / "empty").mkdir()
    weights = build_detector(experiment.model, 3).state_dict()
    info = ModelInfo(identity(experiment), experiment.hash, list(COLOURS), [1, 2, 3], 1, 4, {}, "0" * 64, {})
    save_model(folder / "model", weights, info)
    whole = (folder / "model/model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(folder / "model", folder / "altered")
    (folder / "altered/model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    connect(f"sqlite:///{folder}/mlflow.db")
    return folder

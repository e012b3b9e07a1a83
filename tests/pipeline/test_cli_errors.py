"""What a person may get wrong: each time one `error:` that says what and where, exit code 2, and nothing left half-done."""

import shlex
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.cli import main
from tests.pipeline.bad_inputs import make_place
from tests.servers import free_ports


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


TRAIN = "train {place}/tiny.yaml output={out} tracking.uri=sqlite:///{place}/mlflow.db"
SWEEP = "sweep {place}/tiny.yaml output={out} tracking.uri=sqlite:///{place}/mlflow.db"
PREDICT = "predict {place}/model --output {out}"
EVALUATE = "evaluate --annotations {place}/data/val.json --predictions"
ANALYZE = "analyze {place}/model {place}/tiny.yaml --output {out}"
EXPLAIN = "explain --checkpoint {place}/model --output {out}"
DATABASE = "--set tracking.uri=sqlite:///{place}/mlflow.db"
KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "hidden"}

CASES = {
    # configuration
    "no experiment file": ("train {place}/none.yaml", "{place}/none.yaml: no such file"),
    "no such experiment": ("train dmo", "did you mean 'demo'?"),
    "tabs in YAML": ("train {place}/tabs.yaml", "{place}/tabs.yaml: is not valid YAML", "line 2"),
    "python tag in YAML": ("train {place}/tagged.yaml", "tagged.yaml: line 1: the tag"),
    "YAML list": ("train {place}/list.yaml", "list.yaml: expected a mapping of keys"),
    "ring of extends": ("train {place}/ring.yaml", "ring.yaml: extends itself by way of ring.yaml -> again.yaml"),
    "misspelt key": (f"{TRAIN} train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
    "wrong type": (f"{TRAIN} train.epochs=soon", "train.epochs: expected int, got 'soon'"),
    "negative epochs": (f"{TRAIN} train.epochs=-3", "train.epochs: -3 is not between 1 and"),
    "uneven batch": (f"{TRAIN} ray.workers=3", "train.batch_size: 4 images", "ray.workers=3"),
    "interpolation": (f"{TRAIN} data.root=${{{{oc.env:HOME}}}}", "interpolations"),
    "two experiments": (f"{TRAIN} demo", "'demo': expected key=value"),
    "contradiction": (f"{TRAIN} model.tower=parallel model.aligner=both", "aligner: 'both' needs"),
    "name with a slash": (f"{TRAIN} name=a/b", "name: 'a/b'"),
    # the command itself
    "no verb": ("", "required: VERB"),
    "unknown verb": ("trian demo", "invalid choice: 'trian'"),
    "unknown option": (f"{TRAIN} --stop-aftr 3", "--stop-aftr"),
    "stop after none": (f"{TRAIN} --stop-after 0", "--stop-after: '0' is not a whole number from 1"),
    "stop after negative": (f"{TRAIN} --stop-after -2", "--stop-after: '-2' is not a whole number from 1"),
    "threshold NaN": (f"{PREDICT} {{place}}/data/val --threshold nan", "--threshold: 'nan' is not a number from 0 to 1"),
    "threshold above 1": (f"{PREDICT} {{place}}/data/val --threshold 2", "--threshold: '2' is not a number from 0 to 1"),
    "nothing to resume": (f"{TRAIN} --resume", "--resume: {out} holds no run of tiny"),
    "no sweep to resume": (f"{SWEEP} sweep.space='{{{{train.lr: [1]}}}}' --resume", "--resume: {out} holds no sweep of tiny"),
    # sweeps
    "no axes": (SWEEP, "tiny: has no `sweep:` section"),
    "misspelt axis": (f"{SWEEP} sweep.space='{{{{train.lrr: [1]}}}}'", "trial lrr=1: train.lrr: unknown key; did you mean 'lr'?"),
    "empty axis": (f"{SWEEP} sweep.space='{{{{train.lr: []}}}}'", "sweep.space.train.lr: the list is empty"),
    "axis without effect": (f"{SWEEP} sweep.space='{{{{output: [a,b]}}}}'", "the trials output=a and output=b are the same"),
    # data
    "no data": (f"{TRAIN} data.root={{place}}/none", "{place}/none/train.json: no such file; set data.root"),
    "cut annotations": (f"{TRAIN} data.root={{place}}/cut", "{place}/cut/train.json: not JSON"),
    "other classes in val": (f"{TRAIN} data.root={{place}}/other_classes", "other_classes/val.json: its categories differ"),
    "nothing to learn": (f"{TRAIN} data.root={{place}}/nothing_to_learn", "train.json: no image has an object to learn"),
    "no images": (f"{TRAIN} data.root={{place}}/no_images", "no_images/train.json", "the list of images is empty"),
    "bad box": (f"{TRAIN} data.root={{place}}/bad_box", "annotation 1: bbox [1, 1, -4, 3] has no area", "invalid_boxes=drop"),
    "missing image": (f"{TRAIN} data.root={{place}}/missing_image", "3.png: no such file in {place}/missing_image/train"),
    "check: all at once": ("data check {place}/tiny.yaml data.root={place}/broken_image", "1 problem, listed above"),
    "check: other classes": ("data check {place}/tiny.yaml data.root={place}/other_classes", "1 problem, listed above"),
    "check: images alone": ("data check --images {place}/data/val", "--annotations FILE with --images FOLDER"),
    "convert: no folder": ("data convert voc --images {place}/none --annotations {place} --output {out}", "none: no such folder"),
    # addresses
    "tracking server down": (f"{TRAIN} tracking.uri=http://127.0.0.1:{{port}}", "http://127.0.0.1:{port} cannot be reached"),
    "tracking with password": (f"{TRAIN} tracking.uri=http://me:hidden@host", "http://***@host: holds credentials"),
    "tracking of another kind": (f"{TRAIN} tracking.uri=ftp://host", "tracking address ftp://host: expected http"),
    "tracking without host": (f"{TRAIN} tracking.uri=http://", "tracking address http://: expected http"),
    "SQLite below a file": (f"{TRAIN} tracking.uri=sqlite:///{{place}}/tiny.yaml/x/y.db", "tiny.yaml/x/y.db cannot be opened"),
    "SQLite that is none": (f"{TRAIN} tracking.uri=sqlite:///{{place}}/tiny.yaml", "tiny.yaml cannot be opened"),
    "bucket without keys": (f"{TRAIN} storage.url=s3://bucket/x", "s3://bucket/x", "no credentials; set AWS_ACCESS_KEY_ID"),
    "object store down": (f"{TRAIN} storage.url=s3://bucket/x", "no connection to http://127.0.0.1:{port}", KEYS),
    "bad bucket name": (f"{TRAIN} storage.url=s3://Bu!cket/x", 'Invalid bucket name "Bu!cket"', KEYS),
    "store of another kind": (f"{TRAIN} storage.url=ftp://host/x", "'ftp://host/x' is not a storage URL"),
    "store with keys": (f"{TRAIN} storage.url=s3://AKID:hidden@bucket", "s3://***@bucket: holds credentials"),
    "store below a file": (f"{TRAIN} storage.url={{place}}/tiny.yaml/store", "cannot write {place}/tiny.yaml/store"),
    "output below a file": ("train {place}/tiny.yaml output={place}/tiny.yaml/runs", "tiny.yaml/runs cannot be made"),
    # weights
    "no initial model": (f"{TRAIN} init={{place}}/none", "init: {place}/none does not exist"),
    "initial pickle": (f"{TRAIN} init={{place}}/weights.pth", "weights.pth: a pickle can run code when opened, so it is not"),
    "initial weights cut": (f"{TRAIN} init={{place}}/cut.safetensors", "{place}/cut.safetensors: altered or damaged"),
    "initial folder empty": (f"{TRAIN} init={{place}}/empty", "{place}/empty/manifest.json: cannot be read"),
    "initial of another shape": (f"{TRAIN} init={{place}}/model model.channels=32", "the weights do not fit this model: head"),
    "initial unregistered": (f"{TRAIN} init=models:/missing@champion", "the registry has no model 'missing'"),
    "ImageNet offline": (f"{TRAIN} init=imagenet", "init=imagenet: torchvision could not download the weights of resnet18"),
    "pull: malformed": (f"pull models:/../x {DATABASE} --output {{out}}", "'models:/../x' is not a model"),
    "pull: unknown": (f"pull models:/missing@champion {DATABASE} --output {{out}}", "the registry has no model 'missing'"),
    # use of a model
    "predict: unknown": (f"predict models:/missing@champion {{place}}/data/val {DATABASE} --output {{out}}", "no model 'missing'"),
    "predict: no model": ("predict {place}/none {place}/data/val --output {out}", "{place}/none: no such model folder or file"),
    "predict: pickle": ("predict {place}/weights.pth {place}/data/val --output {out}", "weights.pth: a pickle can run code"),
    "predict: altered": ("predict {place}/altered {place}/data/val --output {out}", "model.safetensors: altered or damaged"),
    "predict: no image": (f"{PREDICT} {{place}}/none.jpg", "{place}/none.jpg: no such image or folder"),
    "predict: empty folder": (f"{PREDICT} {{place}}/empty", "{place}/empty: holds no image"),
    "predict: broken image": (f"{PREDICT} {{place}}/data/val/1.png {{place}}/photo.jpg", "{place}/photo.jpg: cannot be decoded"),
    "predict: output is a file": ("predict {place}/model {place}/data/val --output {place}/tiny.yaml", "tiny.yaml cannot be made"),
    "analyze: no model": ("analyze {place}/none {place}/tiny.yaml --output {out}", "{place}/none: no such model folder or file"),
    "analyze: no data": ("analyze {place}/model {place}/tiny.yaml data.root={place}/none --output {out}", "set data.root"),
    "analyze: other classes": (
        "analyze {place}/model {place}/tiny.yaml data.root={place}/other_classes --output {out}",
        "other_classes/val.json: its categories (pink, green, blue, ...) are not the model's",
    ),
    "analyze: broken image": (
        "analyze {place}/model {place}/tiny.yaml data.root={place}/broken_image --output {out}",
        "broken_image/val/3.png: cannot be decoded",
    ),
    "analyze: output is a file": ("analyze {place}/model {place}/tiny.yaml --output {place}/tiny.yaml", "tiny.yaml cannot be made"),
    "analyze: no such run": (f"{ANALYZE} tracking.uri=sqlite:///{{place}}/mlflow.db --run 123", "run 123"),
    "analyze: tracking server down": (f"{ANALYZE} tracking.uri=http://127.0.0.1:{{port}}", "127.0.0.1:{port} cannot be reached"),
    "explain: no checkpoint": ("explain {place}/data/val/1.png", "required: --checkpoint"),
    "explain: no image": (f"{EXPLAIN} {{place}}/none.jpg", "{place}/none.jpg: no such image or folder"),
    "explain: no such object": (f"{EXPLAIN} {{place}}/data/val/1.png --object 1", "--object 1: {place}/data/val/1.png has no"),
    "explain: no data": (f"{EXPLAIN} {{place}}/data/val/1.png --set data.root={{place}}/none", "no such file; set data.root"),
    "explain: other classes": (
        f"{EXPLAIN} {{place}}/other_classes/val/1.png --experiment {{place}}/tiny.yaml --set data.root={{place}}/other_classes",
        "other_classes/val.json: its categories (pink, green, blue, ...) are not the model's",
    ),
    "evaluate: nothing": ("evaluate", "give --predictions FILE and --annotations FILE, or --model MODEL"),
    "evaluate: half": ("evaluate --predictions {place}/results.json", "give --predictions FILE and --annotations FILE"),
    "evaluate: no file": (f"{EVALUATE} {{place}}/none.json", "{place}/none.json: cannot be read"),
    "evaluate: cut": (f"{EVALUATE} {{place}}/cut.json", "{place}/cut.json: not JSON"),
    "evaluate: NaN": (f"{EVALUATE} {{place}}/results.json", "results.json: detection 0: score nan is not a finite number"),
    "evaluate: other images": (f"{EVALUATE} {{place}}/strangers.json", "image ids", "data/val.json does not have: 99"),
    "evaluate: not results": (f"{EVALUATE} {{place}}/data/val.json", "val.json: not a COCO results file"),
    "evaluate: broken image": (
        "evaluate --model {place}/model {place}/tiny.yaml data.root={place}/broken_image --output {out}/found.json",
        "broken_image/val/3.png: cannot be decoded",
    ),
    "evaluate: other classes": (
        "evaluate --model {place}/model {place}/tiny.yaml data.root={place}/other_classes",
        "other_classes/val.json: its categories (pink, green, blue, ...) are not the model's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error(case, place, tmp_path, monkeypatch, capfd):
    words, *mentions = CASES[case]
    names = {"place": place, "out": tmp_path / "out", "port": free_ports(1)[0]}
    environment = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{names['port']}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "TORCH_HOME": str(place / "torch"),
        "https_proxy": f"http://127.0.0.1:{names['port']}",  # nobody's: no way out to a download
    }
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    if isinstance(mentions[-1], dict):
        environment |= mentions.pop()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(cluster, "connected", lambda *arguments: pytest.fail("Ray was about to start"))
    monkeypatch.chdir(tmp_path)
    code = main(shlex.split(words.format(**names)))

    out, err = capfd.readouterr()
    assert code == 2
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    message = err[err.index("error: ") :]
    for mention in mentions:
        assert mention.format(**names) in message
    assert all(line.startswith("  ") for line in lines if line not in errors)  # single problems, indented
    assert not [line for line in lines if line.startswith("  ")] or "problem" in message
    assert "Traceback" not in out + err
    assert "hidden" not in out + err
    left = [p.relative_to(names["out"]) for p in names["out"].rglob("*") if p.is_file()]
    assert all(p.parts[:2] == ("store", ".locks") for p in left), left
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["out"])

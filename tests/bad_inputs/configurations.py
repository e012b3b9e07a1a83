"""Experiments as YAML files: their form, their keys and values, and combinations that make no sense."""

from tests.bad_inputs.case import Case, Cases, Place, text


def _load(place: Place):
    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values

    return experiment_of(load_values(str(place.folder / "x.yaml")))


def yaml(what: str, content: str | bytes, says: str, where: str = "{folder}/x.yaml", through_command: bool = False) -> Case:
    return Case(what, text("x.yaml", content), _load, where, says, "train {folder}/x.yaml" if through_command else "")


def value(what: str, content: str, where: str, says: str, through_command: bool = False) -> Case:
    """One that is sound as YAML; the message names the key."""
    return yaml(what, content, says, where, through_command)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
DEEP = "[" * 100_000  # PyYAML's C parser overflows the stack
FORM: Cases = {
    "yaml-empty": yaml("an empty file", "", "expected a mapping of keys"),
    "yaml-number": yaml("a number in place of a mapping", "42", "expected a mapping of keys"),
    "yaml-text": yaml("a sentence in place of a mapping", "hello", "expected a mapping of keys"),
    "yaml-list": yaml("a list in place of a mapping", "- train", "expected a mapping of keys", through_command=True),
    "yaml-null": yaml("an explicit null", "null", "expected a mapping of keys"),
    "yaml-binary": yaml("bytes that are no text", b"\xff\xfe\x00\x01" * 8, "is not valid YAML"),
    "yaml-nul": yaml("a NUL byte inside", b"name: a\0b\n", "is not valid YAML"),
    "yaml-tabs": yaml("indented by tabs", "train:\n\tepochs: 3\n", "line 2"),
    "yaml-unclosed": yaml("a bracket that is never closed", "train: {epochs: 3\n", "is not valid YAML"),
    "yaml-two-documents": yaml("two documents in one file", "name: a\n---\nname: b\n", "a second document"),
    "yaml-duplicate-key": yaml("a key given twice", "train: {lr: 0.1}\ntrain: {lr: 0.2}\n", "twice", through_command=True),
    "yaml-duplicate-inner-key": yaml("an inner key given twice", "train:\n  lr: 0.1\n  lr: 0.2\n", "lr"),
    "yaml-alias-bomb": yaml("aliases that stand for ten thousand million values", BOMB, "aliases written out", through_command=True),
    "yaml-deep-blocks": yaml("a hundred thousand list items in each other", "- " * 100_000, "nested more than"),
    "yaml-deep-keys": yaml("a hundred thousand question marks", "? " * 100_000, "line 1"),
    "yaml-alias-ring": yaml("an alias inside of what it stands for", "data: &a {root: *a}\n", "contains itself"),
    "yaml-unknown-alias": yaml("an alias of nothing", "data: *missing\n", "undefined alias"),
    "yaml-deep": yaml("a hundred thousand lists in each other", f"name: {DEEP}\n", "nested more than", through_command=True),
    "yaml-large": yaml("two million characters", "# " + "x" * 2_000_000 + "\nname: a\n", "larger than"),
    "yaml-tag-apply": yaml("a tag that calls a function", "name: !!python/object/apply:os.system [exit]\n", "tag", through_command=True),
    "yaml-tag-new": yaml("a tag that makes an object", "name: !!python/object/new:subprocess.Popen [[id]]\n", "tag"),
    "yaml-tag-name": yaml("a tag that imports a name", "name: !!python/name:os.system\n", "tag"),
    "yaml-tag-module": yaml("a tag that imports a module", "name: !!python/module:antigravity\n", "tag"),
    "yaml-tag-path": yaml("a tag for a path, which OmegaConf would make", "output: !!python/object/apply:pathlib.Path [/]\n", "tag"),
    "yaml-tag-own": yaml("a tag of some other program", "name: !secret vault\n", "tag"),
    "yaml-tag-binary": yaml("a binary value", "name: !!binary aGVsbG8=\n", "tag"),
    "yaml-tag-set": yaml("a set", "sweep: {space: !!set {a, b}}\n", "tag"),
    "yaml-huge-integer": yaml("a number of five thousand digits", f"train: {{epochs: {'9' * 5000}}}\n", "is not valid YAML"),
    "yaml-is-a-folder": Case(
        "a folder by the name of a file",
        lambda place: (place.folder / "x.yaml").mkdir(),
        _load,
        "{folder}/x.yaml",
        "no such file",
        "train {folder}/x.yaml",
    ),
    "yaml-missing": Case("no file", lambda place: None, _load, "{folder}/x.yaml", "no such file"),
    "resolver-environment": yaml("a resolver that reads the environment", "name: ${oc.env:HOME}\n", "interpolations"),
    "resolver-in-list": yaml("a resolver deep in a list", "train: {milestones: [1, '${oc.env:HOME}']}\n", "interpolations"),
    "resolver-in-key": yaml("a resolver as a key", "'${oc.env:HOME}': 1\n", "interpolations"),
    "resolver-custom": yaml("a resolver of some other program", "data: {root: '${shell:id}'}\n", "interpolations"),
    "resolver-of-own-key": yaml("an interpolation of another key", "name: ${data.root}\n", "interpolations", through_command=True),
    "extends-itself": yaml("a file that extends itself", "extends: x\n", "correct the name"),
    "extends-missing": yaml("extends what is not there", "extends: nowhere\n", "nowhere"),
    "extends-number": yaml("extends a number", "extends: 3\n", "expected the name of an experiment"),
    "extends-mapping": yaml("extends a mapping", "extends: {a: 1}\n", "expected the name of an experiment"),
    "extends-empty-name": yaml("extends a name without letters", "extends: ['']\n", "expected the name of an experiment"),
    "extends-outside": yaml("extends a file in another folder by ..", "extends: ../../etc/x\n", "../../etc/x', a path that leaves", through_command=True),
    "extends-absolute": yaml("extends a file by its absolute path", "extends: /etc/x\n", "/etc/x', a path that leaves"),
    "extends-ring": Case(
        "two files that extend each other",
        lambda place: (text("x.yaml", "extends: y\n")(place), text("y.yaml", "extends: x\n")(place)),
        _load,
        "x.yaml",
        "extends itself by way of x.yaml -> y.yaml",
        "train {folder}/x.yaml",
    ),
    "extends-broken": Case(
        "extends a file that is broken, which is the one to name",
        lambda place: (text("x.yaml", "extends: y\n")(place), text("y.yaml", "train: [\n")(place)),
        _load,
        "{folder}/y.yaml",
        "is not valid YAML",
    ),
}  # fmt: skip

VALUES: Cases = {
    "key-unknown": value("a key that nobody knows", "trian: {lr: 1}\n", "trian", "did you mean 'train'", True),
    "key-unknown-inner": value("a misspelt inner key", "train: {epoch: 3}\n", "train.epoch", "did you mean 'epochs'"),
    "key-number": value("a number as a key", "3: 4\n", "3", "unknown key"),
    "key-null": value("null as a key of a section", "train: {null: 4}\n", "{folder}/x.yaml", "where a key must be"),
    "key-with-line-feed": value("a line feed in a key", '"a\\nb": 1\n', "a\\nb", "unknown key"),
    "key-long": value("a key of ten thousand letters", f"? {'k' * 10_000}\n: 1\n", "kkk", "unknown key"),
    "section-is-number": value("a number in place of a section", "train: 3\n", "train", "expected a mapping"),
    "section-is-list": value("a list in place of a section", "model: [tood]\n", "model", "expected a mapping"),
    "section-is-null": value("null in place of a section", "data: null\n", "data", "expected a mapping"),
    "type-text-for-number": value("a word for a number", "train: {lr: fast}\n", "train.lr", "expected float, got 'fast'", True),
    "type-long-text": value("a megabyte of text for a number", f"train: {{lr: {'x' * 100_000}}}\n", "train.lr", "expected float"),
    "type-fraction-for-integer": value("a fraction for a whole number", "train: {epochs: 2.5}\n", "train.epochs", "expected int"),
    "type-bool-for-number": value("true for a number", "train: {epochs: true}\n", "train.epochs", "expected int"),
    "type-number-for-bool": value("a number for true or false", "train: {scale_lr: 1}\n", "train.scale_lr", "expected bool"),
    "type-number-for-text": value("a number for a text", "name: 3\n", "name", "expected str"),
    "type-number-for-list": value("a number for a list", "train: {milestones: 8}\n", "train.milestones", "expected a list"),
    "type-word-in-list": value("a word among numbers", "train: {milestones: [8, x]}\n", "train.milestones[1]", "expected int"),
    "type-list-for-text": value("a list for a text", "init: [imagenet]\n", "init", "expected str"),
    "type-null-for-number": value("null for a number", "train: {lr: null}\n", "train.lr", "expected float"),
    "type-nul-character": value("a NUL character in a path", 'data: {root: "a\\0b"}\n', "data.root", "NUL", True),
    "range-nan": value("not a number", "train: {lr: .nan}\n", "train.lr", "nan is not between", True),
    "range-infinite": value("an infinite rate", "train: {lr: .inf}\n", "train.lr", "inf is not between"),
    "range-beyond-float": value("a whole number beyond every fraction", f"train: {{lr: 1{'0' * 400}}}\n", "train.lr", "is not between"),
    "range-negative": value("negative epochs", "train: {epochs: -1}\n", "train.epochs", "-1 is not between 1 and"),
    "range-zero-workers": value("no worker", "ray: {workers: 0}\n", "ray.workers", "0 is not between 1 and"),
    "range-share": value("a share above 1", "data: {flip: 1.5}\n", "data.flip", "1.5 is not between 0 and 1"),
    "range-image-side": value("an image side of a million", "data: {long_side: 1000000}\n", "data.long_side", "is not between"),
    "range-seed": value("a negative seed", "train: {seed: -1}\n", "train.seed", "is not between"),
    "range-cache": value("a cache of no size", "cache: {max_gb: 0}\n", "cache.max_gb", "is not between"),
    "choice-optimizer": value("an optimizer that is not offered", "train: {optimizer: adam}\n", "train.optimizer", "did you mean 'adamw'"),
    "choice-precision": value("a precision that is not offered", "train: {precision: fp16}\n", "train.precision", "is not one of"),
    "choice-depth": value("a depth that no network has", "model: {backbone: {depth: 51}}\n", "model.backbone.depth", "is not one of"),
    "choice-detector": value("a detector that there is not", "model: {detector: toodd}\n", "model.detector", "did you mean 'tood'"),
    "choice-objective": value("an objective that there is not", "model: {objective: {name: tal}}\n", "model.objective.name", "'tal'"),
    "choice-objective-key": value("a key of another objective", "model: {objective: {radius: 1}}\n", "model.objective.radius", "unknown key"),
    "choice-is-a-list": value("a list for a choice", "train: {schedule: [step]}\n", "train.schedule", "is not one of"),
    "combination-aligner": value("an aligner on parallel towers", "model: {tower: parallel, aligner: both}\n", "model", "set aligner=none", True),
    "combination-prior-box": value("a box form of anchors on points", "model: {box: delta}\n", "model", "set prior=anchor or box=distance"),
    "combination-nine-anchors": value("nine anchors with an aligner", "model: {prior: nine_anchors, box: delta}\n", "model", "prior=anchor"),
    "combination-groups": value("channels that groups do not divide", "model: {channels: 250}\n", "model", "250 is not a multiple of groups=32"),
    "combination-context": value("coarser classes on a shared tower", "model: {context: sce}\n", "model", "set tower=parallel or dpe"),
    "combination-quality": value("a branch that nobody trains", "model: {quality: iou}\n", "model", "set quality=none", True),
    "combination-refinement": value("refined boxes that nobody trains", "model: {refinement: star}\n", "model", "set objective.name=vfnet"),
    "combination-one-to-one": value("one-to-one without its matching", "model: {detector: atss, one_to_one: true}\n", "model", "one_to_one"),
    "combination-dcn": value("deformable stages of a small network", "model: {backbone: {depth: 18, dcn: c3-c5}}\n", "model.backbone", "dcn=none"),
    "combination-groups-width": value("groups that no network has", "model: {backbone: {groups: 64, depth: 50}}\n", "model.backbone", "is no network"),
    "combination-batch": value("a batch that workers cannot share", "train: {batch_size: 5}\nray: {workers: 2}\n", "train.batch_size", "use a multiple of 2"),
    "combination-accumulate": value("an odd share of a batch", "train: {batch_size: 16, accumulate: 3}\n", "train.accumulate", "does not divide"),
    "combination-milestones": value("milestones that go back", "train: {milestones: [11, 8]}\n", "train.milestones", "ascending order"),
    "combination-sides": value("a smallest side above the largest", "data: {short_side_min: 900}\n", "data.short_side_min", "is larger than"),
    "combination-patience": value("patience beyond the end", "train: {early_stopping: {patience: 50}}\n", "train.early_stopping.patience", "lower it"),
    "combination-augment": value("no epoch for the mosaic", "data: {augment: {mosaic: 1, last_epochs_off: 12}}\n", "data.augment", "lower it"),
    "combination-tta": value("views that nothing merges", "predict: {nms: false, tta: {flip: true}}\n", "predict", "set nms=true"),
    "combination-scales": value("the same view twice", "predict: {tta: {scales: [1, 1]}}\n", "predict.tta", "different numbers"),
    "combination-gpu-share": value("NCCL on half a GPU", "ray: {workers: 2, gpus_per_worker: 0.5}\n", "ray.gpus_per_worker", "use 1"),
    "name-with-slash": value("a name that is a path", "name: ../x\n", "name", "'../x'"),
    "name-empty": value("no name", "name: ''\n", "name", "''"),
    "name-long": value("a name of a thousand letters", f"name: {'n' * 1000}\n", "name", "up to 80 letters"),
    "model-name": value("a name that no registry takes", "tracking: {model: 'a/b'}\n", "tracking.model", "'a/b'"),
}  # fmt: skip

CASES: Cases = FORM | VALUES

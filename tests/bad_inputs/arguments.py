"""Words of the command itself; what is bad in a file or at an address has its own room."""

import shlex

from tests.bad_inputs.case import Case, Cases, Place, nothing


def run(words: str) -> int | None:
    """What `tood` does, without turning errors into exit codes."""
    from pipeline.cli import make_parser
    from pipeline.verbs import clusters

    options = make_parser().parse_args(shlex.split(words))
    clusters.enter(options)
    return options.run(options)


def word(what: str, words: str, where: str, says: str) -> Case:
    def load(place: Place):
        return run(place.of(words))

    return Case(what, nothing, load, where, says, words)


TRAIN = "train {sound}/tiny.yaml output={out}"
CASES: Cases = {
    "words-none": word("no verb", "", "VERB", "required"),
    "words-unknown-verb": word("a verb that there is not", "trian demo", "'trian'", "invalid choice"),
    "words-unknown-option": word("a misspelt option", f"{TRAIN} --stop-aftr 3", "--stop-aftr", "unknown"),
    "words-not-a-number": word("a word for a number", f"{TRAIN} --stop-after soon", "--stop-after", "'soon' is not a whole number"),
    "words-zero": word("a count of zero", f"{TRAIN} --stop-after 0", "--stop-after", "'0' is not a whole number from 1"),
    "words-nan": word("not a number", "predict m x.png --threshold nan", "--threshold", "'nan' is not a number from 0 to 1"),
    "words-huge": word("a number of five thousand digits", f"{TRAIN} --stop-after {'9' * 5000}", "--stop-after", "is not a whole number"),
    "words-no-value": word("an option without its value", "predict m x.png --threshold", "--threshold", "expected one argument"),
    "words-no-equals": word("a setting without =", f"{TRAIN} train.epochs", "train.epochs", "expected key=value"),
    "words-empty-key": word("a setting without a key", f"{TRAIN} =3", "=3", "expected key=value"),
    "words-dots": word("a key of dots", f"{TRAIN} train..lr=3", "train..lr=3", "expected key=value"),
    "words-unclosed": word("a bracket that is never closed", f"{TRAIN} 'train.milestones=[1,'", "train.milestones", "is not valid YAML"),
    "words-deep": word("ten thousand brackets", f"{TRAIN} 'train.milestones={'[' * 10_000}'", "train.milestones", "nested more than"),
    "words-tag": word("a tag that calls a function", f"{TRAIN} 'name=!!python/object/apply:os.system [id]'", "name", "tag"),
    "words-interpolation": word("an interpolation", f"{TRAIN} 'name=${{{{oc.env:HOME}}}}'", "name", "interpolations"),
    "words-long-value": word("a value of ten thousand letters", f"{TRAIN} train.lr={'x' * 10_000}", "train.lr", "expected float"),
    "words-section": word("a value for a section", f"{TRAIN} train=3", "train", "expected a mapping of keys, got 3"),
    "words-inside-number": word("a key inside of a number", f"{TRAIN} train.lr.x=3", "train.lr", "expected float"),
    "words-nothing-to-resume": word("nothing to resume", f"{TRAIN} --resume", "--resume", "holds no run"),
    "words-force-without-why": word("a promotion against the figures without a reason", "models promote a/1 --force", "--force", "say --why"),
    "words-age": word("an age in no unit", "models gc --older-than 7", "--older-than", "is not an age such as"),
    "words-night": word("a night that does not exist", "nightly demo --night 2026-02-30", "--night", "2026-02-30"),
    "words-measure": word("an entry that the suite has not", "nightly demo --measure none", "'none'", "has no entry"),
    "words-size": word("a size that is none", "cost demo --size 100x100", "--size", "in multiples of 32"),
    "words-classes": word("no class", "cost demo --classes 0", "--classes", "'0' is not a whole number"),
    "words-format": word("a format that nobody writes", "export m --format tflite --output x", "--format", "invalid choice: 'tflite'"),
    "words-file-name": word("a file name of another format", "export m --format onnx --output x.pt2", "x.pt2", "ends in .onnx"),
    "words-both-sizes": word("two options that exclude each other", "export m --format onnx --output x.onnx --size 64x64 --dynamic", "--dynamic", "not allowed"),
    "words-convert": word("folders and a root at once", "data convert voc --root a --images b --annotations c --output {out}", "--root", "give --root FOLDER"),
    "words-port": word("a port beyond the last", "ui --port 70000", "--port", "'70000' is not a whole number"),
    "words-submit-here": word("a verb that is for this machine", "submit --profiles {sound}/cluster.yaml ui", "tood ui", "is for this machine"),
    "words-two-experiments": word("two experiments", "doctor demo bccd_r18", "demo bccd_r18", "expected one experiment"),
    "words-nul": word("a NUL in a path", "train '{folder}/a\0b.yaml'", "{folder}/a", "no such file"),
}  # fmt: skip

"""Suites of `tood nightly`, and search spaces of `tood sweep`."""

from tests.bad_inputs.case import Case, Cases, Place, text

COMMAND = "nightly {folder}/x.yaml"


def _load_suite(place: Place):
    """As a night does, before anything starts."""
    from pipeline.nightly.suite import ParityEntry, experiment_for, read_suite

    suite = read_suite(str(place.folder / "x.yaml"))
    for entry in suite.entries:
        if not isinstance(entry, ParityEntry):
            experiment_for(suite, entry, [])


def suite(what: str, content: str, where: str, says: str, through_command: bool = False) -> Case:
    return Case(what, text("x.yaml", content), _load_suite, where, says, COMMAND if through_command else "")


def accuracy(what: str, values: str, where: str, says: str, through_command: bool = False) -> Case:
    return suite(what, f"accuracy: [{{name: a, experiment: demo, {values}}}]\n", f"accuracy[0]{where}", says, through_command)


def _plan(place: Place):
    from pipeline.experiment_files import load_values
    from pipeline.sweep import make_plan

    return make_plan(load_values(str(place.folder / "x.yaml")))


def space(what: str, axes: str, where: str, says: str, search: str = "grid", through_command: bool = False) -> Case:
    content = f"extends: demo\nsweep: {{search: {search}, samples: 3, space: {axes}}}\n"
    return Case(what, text("x.yaml", content), _plan, where, says, "sweep {folder}/x.yaml" if through_command else "")


SUITES: Cases = {
    "suite-missing": Case("no file", lambda place: None, _load_suite, "{folder}/x.yaml", "no such file", COMMAND),
    "suite-unknown": Case("a suite that is not shipped", lambda place: None, lambda place: _named("demmo"), "demmo", "did you mean 'demo'"),
    "suite-outside": Case("a suite by a name that leaves the folder", lambda place: None, lambda place: _named("../base/coco"), "../base/coco", "neither shipped"),
    "suite-empty": suite("nothing to measure", "name: x\n", "measures something", "add entries", True),
    "suite-unknown-part": suite("a part that nobody knows", "acuracy: []\n", "acuracy", "did you mean 'accuracy'"),
    "suite-mapping": suite("a mapping of entries", "accuracy: {name: a}\n", "accuracy", "expected a list"),
    "suite-entry-text": suite("a text for an entry", "accuracy: [demo]\n", "accuracy[0]", "expected a mapping of keys"),
    "suite-two-of-a-name": suite("two entries of one name", "parity: [{name: a}, {name: a}]\n", "'a'", "rename one", True),
    "suite-name-path": suite("a suite's name that is a path", "name: ../x\nparity: [{name: a}]\n", "name", "use up to 80 letters"),
    "suite-entry-name": suite("an entry's name that is a path", "parity: [{name: a/b}]\n", "parity[0]", "use up to 80 letters"),
    "suite-no-experiment": suite("an entry without an experiment", "accuracy: [{name: a}]\n", "experiment", "", True),
    "suite-unknown-experiment": suite("an experiment that there is not", "accuracy: [{name: a, experiment: dmo}]\n", "dmo", "did you mean 'demo'", True),
    "suite-setting": suite("a misspelt setting of an entry", "accuracy: [{name: a, experiment: demo, settings: [train.epoch=3]}]\n", "entry a", "did you mean 'epochs'"),
    "suite-seeds-empty": accuracy("no seed", "seeds: []", "", "are not different numbers"),
    "suite-seeds-twice": accuracy("a seed given twice", "seeds: [1, 1]", "", "are not different numbers"),
    "suite-seeds-negative": accuracy("a negative seed", "seeds: [-1]", "", "seeds[0]: -1 is not between"),
    "suite-seeds-text": accuracy("a word for a seed", "seeds: [x]", ".seeds[0]", "expected int"),
    "suite-metric": accuracy("a metric that is not measured", "metrics: [val/ap]", "", "did you mean 'val/AP'", True),
    "suite-metrics-empty": accuracy("no metric", "metrics: []", "", "the list is empty"),
    "suite-metric-twice": accuracy("a metric given twice", "metrics: [val/AP, val/AP]", "", "is given twice"),
    "suite-expected-other": accuracy("a range of another metric", "expected: {val/AP50: [0, 1]}", "", "does not measure it"),
    "suite-expected-number": accuracy("a number for a range", "expected: {val/AP: 0.4}", "", "is no range"),
    "suite-expected-backwards": accuracy("a range that goes back", "expected: {val/AP: [0.5, 0.4]}", "", "is no range"),
    "suite-expected-nan": accuracy("a range of what is no number", "expected: {val/AP: [.nan, 1]}", "", "is no range"),
    "suite-expected-huge": accuracy("a range beyond every fraction", f"expected: {{val/AP: [0, 1{'0' * 400}]}}", "", "is no range"),
    "suite-noise": accuracy("a noise that is not a number", "noise: .nan", ".noise", "nan is not between"),
    "suite-model": accuracy("a model's name that no registry takes", "model: a/b", "", "use up to 80 letters"),
    "suite-measure": suite("a part of training that is not timed", "speed: [{name: a, experiment: demo, measures: [setp]}]\n", "speed[0]", "did you mean 'step'"),
    "suite-half-parity": suite("detections without annotations", "parity: [{name: a, detections: x.json}]\n", "parity[0]", "give both files or neither"),
    "suite-parity-no-file": suite("annotations that are not there", "parity: [{name: a, detections: x.json, annotations: @folder@/none.json}]\n", "none.json", "no such file"),
}  # fmt: skip

MANY = "{" + ", ".join(f"a{i}: {{choices: {{" + ", ".join(f"c{i}x{j}: {{}}" for j in range(9)) + "}}" for i in range(9)) + "}"
SPACES: Cases = {
    "space-empty": space("no axis", "{}", "sweep.space", "no axis is given", through_command=True),
    "space-list": space("a list of axes", "[train.lr]", "sweep.space", "expected a mapping"),
    "space-empty-axis": space("an axis without a value", "{train.lr: []}", "sweep.space.train.lr", "the list is empty", through_command=True),
    "space-unknown-key": space("a misspelt key", "{train.lrr: [1, 2]}", "train.lrr", "did you mean 'lr'"),
    "space-wrong-type": space("a word for a number", "{train.lr: [0.1, fast]}", "train.lr", "expected float, got 'fast'"),
    "space-out-of-range": space("a value out of its range", "{train.lr: [0.1, -1]}", "train.lr", "is not between"),
    "space-contradiction": space("a combination that makes no sense", "{model.tower: [parallel], model.aligner: [both]}", "model", "set aligner=none"),
    "space-same-twice": space("two trials that are the same", "{train.lr: [0.1, 0.1]}", "sweep.space", "are the same experiment"),
    "space-key-number": space("a number for a key", "{3: [1]}", "sweep.space", "3 is not a key"),
    "space-set-twice": space("a key that two axes set", "{train.lr: [1], a: {choices: {x: {train.lr: 2}}}}", "sweep.space", "leave it to one of them"),
    "space-range-in-grid": space("a range in a grid", "{train.lr: {uniform: [0, 1]}}", "sweep.space.train.lr", "a grid cannot enumerate"),
    "space-range-unknown": space("a range of another kind", "{train.lr: {normal: [0, 1]}}", "sweep.space.train.lr", "expected a list, choices, or one of", "random"),
    "space-range-backwards": space("a range that goes back", "{train.lr: {uniform: [1, 0]}}", "sweep.space.train.lr", "low < high", "random"),
    "space-range-one-end": space("a range of one end", "{train.lr: {uniform: [1]}}", "sweep.space.train.lr", "low < high", "random"),
    "space-range-nan": space("a range of what is no number", "{train.lr: {uniform: [0, .nan]}}", "sweep.space.train.lr", "low < high", "random"),
    "space-range-infinite": space("a range without end", "{train.lr: {uniform: [0, .inf]}}", "sweep.space.train.lr", "low < high", "random"),
    "space-log-of-zero": space("a logarithmic range from zero", "{train.lr: {loguniform: [0, 1]}}", "sweep.space.train.lr", "low < high", "random"),
    "space-fractions": space("fractions in a range of whole numbers", "{train.epochs: {int: [1.5, 3]}}", "sweep.space.train.epochs", "expected whole numbers", "random"),
    "space-choices-list": space("a list of choices", "{head: {choices: [a]}}", "sweep.space.head.choices", "expected a mapping"),
    "space-choices-empty": space("no choice", "{head: {choices: {}}}", "sweep.space.head.choices", "expected a mapping"),
    "space-choice-number": space("a number for a choice", "{head: {choices: {a: 3}}}", "sweep.space.head.choices.a", "expected a mapping of keys"),
    "space-giant": space("a grid of four hundred million trials", MANY, "sweep.space", "387420489 trials", through_command=True),
    "space-repeats": space("more trials than a sweep can hold", "{train.lr: [0.1, 0.2]}, repeats: 100000", "sweep.repeats", "is not between"),
    "sweep-metric": space("a metric that is not measured", "{train.lr: [1]}, metric: val/ap", "sweep.metric", "did you mean 'val/AP'"),
    "sweep-grace": space("a grace beyond the end", "{train.lr: [1]}, scheduler: asha, grace_epochs: 500", "sweep.grace_epochs", "is more than"),
    "sweep-published": space("a published figure that there is not", "{train.lr: [1]}, published: [{at: {train.lr: 1}, APP: 3}]", "published[0].APP", "did you mean 'AP'"),
    "sweep-published-text": space("a text for a published figure", "{train.lr: [1]}, published: [{at: {train.lr: 1}, AP: high}]", "published[0]", "expected at:"),
}  # fmt: skip


def _named(name: str):
    from pipeline.nightly.suite import read_suite

    return read_suite(name)


CASES: Cases = SUITES | SPACES

"""Experiments from YAML: inheritance, overrides, what is refused and how."""

import pytest

from pipeline.config import Experiment, experiment_of
from pipeline.experiment_files import load_values
from tests.tiny import write_experiment
from tood.errors import ConfigError
from tood.objectives.atss import ATSS

BOMB = "a: &a [1]\n" + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in ("ab", "bc", "cd", "de"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(write_experiment(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def load(name: str, *overrides: str) -> Experiment:
    return experiment_of(load_values(name, overrides))


# -- files and what they extend --------------------------------------------------------------------------------------


def test_a_child_overrides_its_parents_key_by_key_and_the_later_parent_wins(write):
    write("grandparent.yaml", "name: old\ndescription: of another\ntrain: {epochs: 5, lr: 0.5, milestones: [1, 2]}")
    write("parent.yaml", "extends: grandparent\ntrain: {lr: 0.25}\ndata: {flip: 0}")
    write("other.yaml", "train: {lr: 0.125}\ninit: none")
    child = load(write("child.yaml", "extends: [parent, other]\ntrain: {milestones: [4]}"))
    assert (child.train.epochs, child.train.lr, child.train.milestones) == (5, 0.125, (4,))
    assert (child.data.flip, child.init) == (0, "none")
    assert (child.name, child.description) == ("child", "")  # these two are a file's own


def test_a_parent_is_sought_beside_the_file_and_then_among_the_shipped(write):
    assert load(write("mine.yaml", "extends: demo")).data.source == "digits"
    assert load(write("deep.yaml", "extends: [base/coco, base/schedule_2x]")).train.epochs == 24
    assert load(write("demo.yaml", "extends: demo\ntrain: {epochs: 2}")).train.epochs == 2  # not itself: the shipped one
    write("bccd_r18.yaml", "train: {epochs: 3}")
    assert load(write("next.yaml", "extends: bccd_r18")).train.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: a", r"^b\.yaml: extends itself by way of b\.yaml -> a\.yaml; leave"),
        ("extends: nowhere", "extends 'nowhere', which is neither beside it nor a shipped experiment"),
        ("extends: 3", "extends: expected the name of an experiment or a list of names, got 3"),
        ("extends:", "extends: expected .* got None"),
        ("extends: [demo, {a: 1}]", "extends: expected"),
        ("- train", "expected a mapping of keys"),
        ("train: {epochs: 1}\ntrain: {epochs: 2}", "line 2: the key 'train' is given twice"),
        ("train:\n\tepochs: 3", "is not valid YAML"),
        ("train: !!python/object/apply:os.getcwd []", "the tag .*python/object/apply:os.getcwd' is not read"),
        (BOMB, "more than 10000 values, aliases written out"),
        ("a: " + "[" * 3000, "nested more than"),
        ("data: {root: '${oc.env:HOME}'}", r"interpolations such as '\$\{oc.env:HOME\}' are not read"),
        ("sweep: {space: {init: ['${x}']}}", "interpolations"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_clear_error(write, text, message):
    write("a.yaml", "extends: b")
    with pytest.raises(ConfigError, match=message):
        load_values(write("b.yaml", text))


@pytest.mark.parametrize("name", ["dmo", "no/such", "", "../pyproject", "sweeps", "missing.yaml"])
def test_an_unknown_experiment_is_refused_and_the_nearest_name_given(name):
    with pytest.raises(ConfigError, match="did you mean 'demo'" if name == "dmo" else "`tood experiments`|did you mean 'sweeps/"):
        load_values(name)


# -- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=3", "train", "epochs", 3),
        ("train.lr=1e-3", "train", "lr", 0.001),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.scale_lr=false", "train", "scale_lr", False),
        ("train.milestones=[2, 4]", "train", "milestones", (2, 4)),
        ("train.milestones=[]", "train", "milestones", ()),
        ("train={epochs: 9, lr: 0.3}", "train", "epochs", 9),
        ("data.root=/a b/c=d", "data", "root", "/a b/c=d"),
        ("data.val.images=x/y", "data", "val", None),
        ("ray.gpus_per_worker=null", "ray", "gpus_per_worker", None),
        ("ray.gpus_per_worker=0.5", "ray", "gpus_per_worker", 0.5),
        ("model.objective={name: atss, topk: 5}", "model", "objective", ATSS(topk=5)),
    ],
)
def test_an_override_has_the_type_of_its_key(tiny, override, section, key, value):
    found = getattr(getattr(load(tiny, override), section), key)
    if value is None and key == "val":
        assert (found.images, found.annotations) == ("x/y", "val.json")
    else:
        assert found == value
        assert type(found) is type(value)


def test_the_last_of_several_overrides_wins(tiny):
    assert load(tiny, "train.epochs=3", "train.lr=0.5", "train.epochs=4").train.epochs == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("trian.epochs=3", "trian: unknown key; did you mean 'train'?"),
        ("model.objective.aplha=1", "model.objective.aplha: unknown key; did you mean 'alpha'?"),
        ("model.detector=todo", "did you mean 'tood'?"),
        ("train.epochs='3'", "train.epochs: expected int, got '3'"),
        ("train.epochs=2.5", "train.epochs: expected int, got 2.5"),
        ("train.epochs=-1", "train.epochs: -1 is not between 1 and"),
        ("train.lr=.nan", "train.lr: nan is not between 0 and 100"),
        ("train.lr=", "train.lr: expected float, got None"),
        ("train=3", "train: expected a mapping of keys, got 3"),
        ("train.milestones=[5, 2]", "train.milestones: .* ascending"),
        ("train.accumulate=3", "train.accumulate: 3 does not divide train.batch_size=4"),
        ("ray.workers=3", "4 images a step .* ray.workers=3; use a multiple of 3"),
        ("data.short_side_min=500", "data.short_side_min: 500 is larger than data.short_side=64"),
        ("name=a/b", "name: 'a/b' names folders and models"),
        ("tracking.model=a b", "tracking.model: 'a b' names"),
        ("data.root=${oc.env:HOME}", "interpolations such as"),
        ("data.root=${", "data.root: is not valid YAML"),
        ("train.milestones=[1,", "train.milestones: is not valid YAML"),
        ("epochs", "expected key=value, such as train.epochs=24"),
        ("train..epochs=3", "expected key=value"),
        ("sweep.metric=val/AP5", "sweep.metric: 'val/AP5' is not one of .*did you mean"),
        ("sweep.published=[{AP: 3}]", r"sweep: published\[0\]: expected at:"),
        ("sweep={scheduler: asha, grace_epochs: 9}", "sweep.grace_epochs: 9 is more than train.epochs=4"),
    ],
)
def test_a_bad_override_is_one_clear_error(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        load(tiny, override)

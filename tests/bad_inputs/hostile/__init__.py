"""Attacks: each would run something, or write somewhere, if what reads it did as it is told."""

from tests.bad_inputs.hostile.archives import ARCHIVES
from tests.bad_inputs.hostile.ground import Attack
from tests.bad_inputs.hostile.names import NAMES
from tests.bad_inputs.hostile.pickles import PICKLES
from tests.bad_inputs.hostile.texts import TEXTS

ATTACKS: dict[str, Attack] = PICKLES | ARCHIVES | NAMES | TEXTS

"""All bad inputs, by the name that a test is told by."""

from tests.bad_inputs import (
    addresses,
    annotations,
    arguments,
    clusters,
    configurations,
    detections,
    images,
    models,
    packs,
    suites,
    torch_files,
)
from tests.bad_inputs.case import Cases

ROOMS = (configurations, arguments, annotations, images, detections, models, torch_files, addresses, packs, clusters, suites)
CORPUS: Cases = {name: case for room in ROOMS for name, case in room.CASES.items()}

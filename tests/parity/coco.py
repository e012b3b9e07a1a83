"""COCO's figures of recorded detections (kind cocoeval), by every evaluation backend."""

import numpy as np

from tests.parity.case import Case, read_spec
from tood.evaluation import coco_figures, precision_recall, read_results, read_truth

EXACT = 1e-12


def entries(spec: dict) -> list[str]:
    return [f"{name}-{backend}" for name in spec if name != "kind" for backend in ("hotcoco", "pycocotools")]


def run(case: Case) -> None:
    name, backend = case.entry.rsplit("-", 1)
    recorded = case.spec[name]
    annotations = case.path.parent / f"{name}_gt.json"
    found = read_results(case.path.parent / f"{name}_dt.json")
    for part in ("coco", "mmdet_proposal_nums"):
        figures = coco_figures(annotations, found, backend=backend, max_dets=tuple(recorded[part]["maxDets"]))
        case.close(f"figures, {part}", list(figures.summary.values()), recorded[part]["stats"], EXACT)

    figures = coco_figures(annotations, found, backend=backend)
    categories = {str(category["id"]): category["name"] for category in read_spec(annotations)["categories"]}
    for part, figure in (("per_category_AP", "AP"), ("per_category_AP50", "AP50")):
        ours = {i: figures.per_class[category][figure] for i, category in categories.items()}
        case.same("categories", sorted(ours), sorted(recorded[part]))
        case.close(figure, [ours[i] for i in recorded[part]], list(recorded[part].values()), EXACT)
    _, recall = precision_recall(read_truth(annotations), found, backend=backend)
    case.close("recall at 100", recall[:, :, 0, -1], np.array(recorded["recall_at_100_per_iou_per_cat"]), EXACT)

"""The analysis once more, as plainly as it can be said: Python's numbers and loops, one detection and one object at a time."""

from typing import Any

import numpy as np


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (area(a) + area(b) - width * height)


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def corners(xywh: list[float]) -> list[float]:
    return [xywh[0], xywh[1], xywh[0] + xywh[2], xywh[1] + xywh[3]]


def judge(data: dict[str, Any], found: Any, threshold: float = -1.0) -> tuple[list[dict], list[dict]]:
    """Every object and every detection of a COCO file as a dictionary that says what became of it."""
    objects = [
        {"image": a["image_id"], "class": a["category_id"], "box": corners(a["bbox"]), "found": False, "number": i}
        for i, a in enumerate(data["annotations"])
        if not a.get("iscrowd")
    ]
    crowds = [a for a in data["annotations"] if a.get("iscrowd")]
    detections = []
    image_of = found.image_ids.tolist()
    for image in sorted(image["id"] for image in data["images"]):
        rows = [i for i in range(len(image_of)) if image_of[i] == image]
        rows.sort(key=lambda i: -found.scores[i])
        of_class: dict[int, int] = {}
        for i in rows:
            label = int(found.category_ids[i])
            of_class[label] = of_class.get(label, 0) + 1
            if of_class[label] > 100 or found.scores[i] < threshold:
                continue
            box = corners(found.boxes[i].tolist())
            here = [o for o in objects if o["image"] == image]
            d = {"image": image, "class": label, "box": box, "score": float(found.scores[i]), "object": None}
            free, best = [o for o in here if o["class"] == label and not o["found"]], 0.5
            for o in free:
                if iou(box, o["box"]) >= best:
                    best, d["object"] = iou(box, o["box"]), o
            if d["object"]:
                d["object"]["found"] = True
            d["own"] = max(((iou(box, o["box"]), -o["number"], o) for o in here if o["class"] == label), default=(0.0, 0, None))
            d["other"] = max(((iou(box, o["box"]), -o["number"], o) for o in here if o["class"] != label), default=(0.0, 0, None))
            d["in_crowd"] = False
            for c in crowds:
                if c["image_id"] == image and c["category_id"] == label:
                    x1, y1, x2, y2 = corners(c["bbox"])
                    width, height = min(box[2], x2) - max(box[0], x1), min(box[3], y2) - max(box[1], y1)
                    shared = width * height if width > 0 and height > 0 else 0.0
                    d["in_crowd"] |= area(box) > 0 and shared / area(box) >= 0.5
            detections.append(d)
    return objects, detections


def kind(d: dict) -> str | None:
    """What is wrong with a detection; None where nothing is, or nobody can tell."""
    own, other = d["own"][0], d["other"][0]
    if d["object"] or d["in_crowd"]:
        return None
    if 0.1 <= own < 0.5:
        return "localisation"
    if other >= 0.5:
        return "classification"
    if own >= 0.5:
        return "duplicate"
    if own <= 0.1 and other <= 0.1:
        return "background"
    return "both"


def ap50(entries: list[tuple[int, float, bool]], objects_of_class: dict[int, int], classes: list[int]) -> float:
    """Mean over classes of the precision at 101 recalls; entries are (class, score, right), in the order of images."""
    values = []
    for c in classes:
        ranked = sorted((e for e in entries if e[0] == c), key=lambda e: -e[1])
        points, right = [], 0
        for rank, entry in enumerate(ranked, start=1):
            right += entry[2]
            if entry[2] and objects_of_class[c]:  # between two hits, precision only falls
                points.append((right / objects_of_class[c], right / rank))
        at = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
        values.append(sum(at) / 101)
    return sum(values) / len(values) if values else -1.0


def costs(objects: list[dict], detections: list[dict]) -> tuple[float, dict[str, tuple[int, float]]]:
    """AP50, and of each kind of error its count and the AP50 that mending it gains."""
    classes = sorted({o["class"] for o in objects})
    number = {c: sum(o["class"] == c for o in objects) for c in classes}
    counted = [d for d in detections if d["object"] or not d["in_crowd"]]

    def entries(skip: str = "", mended: dict[int, int] | None = None) -> list[tuple[int, float, bool]]:
        listed = []
        for i, d in enumerate(counted):
            if mended and i in mended:
                listed.append((mended[i], d["score"], True))
            elif kind(d) != skip or kind(d) is None:
                listed.append((d["class"], d["score"], d["object"] is not None))
        return listed

    base = ap50(entries(), number, classes)
    result = {}
    reached = set()
    for name, partner in (("classification", "other"), ("localisation", "own")):
        best: dict[int, int] = {}  # object -> the surest detection that means it
        for i, d in enumerate(counted):
            if kind(d) == name:
                o = d[partner][2]
                reached.add(o["number"])
                if not o["found"] and (o["number"] not in best or d["score"] > counted[best[o["number"]]]["score"]):
                    best[o["number"]] = i
        mended = {i: counted[i][partner][2]["class"] for i in best.values()}
        result[name] = (sum(kind(d) == name for d in counted), ap50(entries(name, mended), number, classes) - base)
    for name in ("both", "duplicate", "background"):
        result[name] = (sum(kind(d) == name for d in counted), ap50(entries(name), number, classes) - base)
    missed = [o for o in objects if not o["found"] and o["number"] not in reached]
    left = {c: number[c] - sum(o["class"] == c for o in missed) for c in classes}
    result["missed"] = (len(missed), ap50(entries(), left, classes) - base)
    return base, result


def confusions(objects: list[dict], detections: list[dict], classes: list[int]) -> np.ndarray:
    """Of detections and objects that `judge` went through with the threshold of the matrix."""
    matrix = np.zeros((len(classes) + 1, len(classes) + 1), dtype=int)
    rows = {c: i for i, c in enumerate(classes)}
    for d in detections:
        if d["object"]:
            matrix[rows[d["class"]], rows[d["class"]]] += 1
    taken = set()
    for d in detections:
        if d["object"] or d["in_crowd"]:
            continue
        free = [o for o in objects if o["image"] == d["image"] and not o["found"] and o["number"] not in taken]
        best = max(((iou(d["box"], o["box"]), o["number"], o) for o in free), default=(0.0, 0, None))
        if best[0] >= 0.5:
            taken.add(best[1])
            matrix[rows[best[2]["class"]], rows[d["class"]]] += 1
        else:
            matrix[-1, rows[d["class"]]] += 1
    for o in objects:
        if not o["found"] and o["number"] not in taken:
            matrix[rows[o["class"]], -1] += 1
    return matrix


def boxes(detections: list[dict]) -> tuple[int, int, int]:
    """Correct, redundant and error boxes."""
    wrong = [d["own"][0] for d in detections if not d["object"] and not d["in_crowd"]]
    correct = sum(d["object"] is not None for d in detections)
    return correct, sum(u >= 0.5 for u in wrong), sum(0.1 < u < 0.5 for u in wrong)


def agreement(
    scores: list[float], predicted: list[list[float]], points: list[list[float]], box: list[float]
) -> tuple[float, float]:
    """PCC of the rankings of an object's 50 surest predictions, and the mean IoU of its 10 surest; NaN where there are none."""
    inside = []
    for score, prediction, (x, y) in zip(scores, predicted, points, strict=True):
        if min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01:
            inside.append((score, iou(prediction, box)))
    inside.sort(key=lambda pair: -pair[0])
    top = inside[:50]
    ranks = [[sum(v < w for v in column) + sum(v == w for v in column) / 2 for w in column] for column in zip(*top, strict=True)]
    pcc = float("nan")
    if top and all(len(set(column)) > 1 for column in ranks):
        pcc = float(np.corrcoef(ranks)[0, 1])
    best = [u for _, u in inside[:10]]
    return pcc, sum(best) / len(best) if best else float("nan")

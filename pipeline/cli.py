"""The `tood` command. Each verb is a few lines around one function; heavy imports wait until their verb is used."""

import logging
import signal
import sys
import threading
from collections.abc import Sequence

from pipeline.arguments import Parser, Verbs
from pipeline.refusals import READER_GONE, explained, reader_gone
from pipeline.tracking.facts import redact_known
from pipeline.verbs import (
    bench,
    clusters,
    compare,
    completion,
    data,
    deliver,
    doctor,
    exchange,
    experiments,
    jobs,
    models,
    nightly,
    registry,
    storage,
    ui,
)
from tood.errors import ToodError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. 0: done; 1: some trials failed; 2: an error that the person can act on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that open runs are closed
    for chatty in ("mlflow", "alembic", "ray.train", "ray.tune"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it would print tracebacks of errors that we explain
    options = None
    try:
        options = make_parser().parse_args(arguments)
        clusters.enter(options)
        code = options.run(options) or 0
        if sys.stdout:  # a daemon may have none
            sys.stdout.flush()  # here, where it can still be said that this failed
        return code
    except ToodError as error:
        print(f"error: {redact_known(str(error))}", file=sys.stderr)  # it may quote what a person typed
        return 2
    except KeyboardInterrupt:
        print(f"interrupted{'; --resume goes on where this was left' if hasattr(options, 'resume') else ''}", file=sys.stderr)
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_gone():
            return READER_GONE
        if not (said := explained(error)):
            raise
        print(f"error: {redact_known(said)}", file=sys.stderr)
        return 2


def make_parser() -> Parser:
    parser = Parser(prog="tood", description="Experiments with one-stage object detection on Ray and MLflow.")
    verbs = Verbs(parser)
    groups = (
        experiments,
        models,
        compare,
        exchange,
        registry,
        storage,
        nightly,
        ui,
        deliver,
        data,
        jobs,
        doctor,
        bench,
        completion,
    )
    for group in groups:
        group.add_to(verbs)
    clusters.offer(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

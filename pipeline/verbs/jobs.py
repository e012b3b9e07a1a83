"""Verbs that run others as jobs on a cluster, and look after those jobs."""

import argparse
import json
import sys

from pipeline.arguments import Parser, Verbs, number
from pipeline.verbs.clusters import add_options
from tood.errors import ToodError

CLUSTER = "a cluster of cluster.yaml (default: the file's own default, or its only one)"
JOB = "a job's id, or the beginning of it that no other has"


def add_to(verbs: Verbs) -> None:
    added = verbs.add("submit", _submit, "run any verb as a job on a cluster and follow it; Ctrl-C leaves it running")
    added.usage = "tood submit [options] VERB [its arguments]"
    added.add_argument("words", nargs=argparse.REMAINDER, metavar="VERB ...", help="such as: sweep sweeps/demo train.epochs=3")
    _add_submit_options(added)

    jobs = verbs.add("jobs", _list, "list a cluster's jobs; show, follow or stop one")
    add_options(jobs, CLUSTER)
    jobs.add_argument("--limit", type=number(int, 1, 10_000), default=20, help="newest so many (default 20)")
    jobs.add_argument("--json", action="store_true")
    actions = Verbs(jobs, title="what to do with one", required=False)
    for name, run, text in (
        ("status", _status, "everything about a job, and what it holds of the cluster"),
        ("logs", _logs, "what a job has printed"),
        ("stop", _stop, "end a job, and wait until nothing of it is left on the cluster"),
    ):
        added = actions.add(name, run, text)
        added.add_argument("job", help=JOB)
        add_options(added, CLUSTER, argparse.SUPPRESS)  # else its default would undo what stands before the action
        added.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        if name == "logs":
            added.add_argument("--follow", action="store_true", help="go on until the job ends")


def _add_submit_options(parser: argparse.ArgumentParser) -> None:
    add_options(parser, CLUSTER)
    parser.add_argument("--again", action="store_true", help="run it once more although it has ended")
    parser.add_argument("--detach", action="store_true", help="do not follow the log")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, send nothing")
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="project files to leave behind")
    parser.add_argument("--json", action="store_true", help="a JSON line about the job; its log goes to stderr")


def _submit(options: argparse.Namespace) -> int:
    """Options of submit may stand on either side of the verb; what follows `--` is the verb's alone."""
    from pipeline.cli import make_parser
    from pipeline.jobs.submit import plan, preflight, start

    own = Parser(prog="tood submit", allow_abbrev=False, add_help=False)
    _add_submit_options(own)
    words = options.words
    behind = words.index("--") if "--" in words else len(words)
    options, before = own.parse_known_args(words[:behind], options)
    words = [*before, *words[behind + 1 :]]
    cluster, connect = _cluster(options)
    submission = plan(make_parser(), words, cluster, options.exclude)
    if options.dry_run:
        sent = {"id": submission.id, "entrypoint": submission.entrypoint, "metadata": submission.metadata}
        sent |= {"environment": submission.environment, "files": submission.package.sizes()}
        print(json.dumps(sent, indent=None if options.json else 1))
        return 0
    preflight(submission, _note)
    server = connect()
    job_id, fresh = start(server, submission, again=options.again)
    job = server.find(job_id)
    if not fresh:
        _note(f"{job_id}: {'succeeded already; --again runs it once more' if job and job.over else 'runs already; following it'}")
    if options.detach or (job and job.over):
        _tell(options, job, {"started_now": fresh})
        if fresh:
            _note(_how_to_go_on(options, job_id))
        return 0
    return _follow(options, server, job_id, {"started_now": fresh})


def _list(options: argparse.Namespace) -> None:
    from pipeline.jobs.submitted import facts, table

    jobs = _cluster(options)[1]().jobs()[: options.limit]
    print(json.dumps([facts(job) for job in jobs]) if options.json else table(jobs))


def _status(options: argparse.Namespace) -> None:
    from pipeline.jobs.submitted import details, facts, find

    server = _cluster(options)[1]()
    job = find(server, options.job)
    held = server.holdings(job.ray_job) if job.ray_job else []
    print(json.dumps(facts(job) | {"holds": held}) if options.json else details(job, held))


def _logs(options: argparse.Namespace) -> int | None:
    from pipeline.jobs.submitted import find

    server = _cluster(options)[1]()
    job = find(server, options.job)
    if options.follow:
        return _follow(options, server, job.id, {})
    log = server.logs(job.id)
    print(json.dumps({"id": job.id, "log": log}) if options.json else log, end="\n" if options.json else "")
    return None


def _stop(options: argparse.Namespace) -> int:
    from pipeline.jobs.submitted import facts, find, stop

    server = _cluster(options)[1]()
    job = find(server, options.job)
    was_over = job.over
    job, left = stop(server, job, _note)
    if options.json:
        print(json.dumps(facts(job) | {"left": left}))
    elif not left:
        print(f"{job.id}: {'had ended before, ' if was_over else ''}{job.status.lower()}; nothing of it is left")
    if left:
        raise ToodError(f"{job.id}: is over, but the cluster still holds {', '.join(left[:5])}; look at Ray's dashboard")
    return 0


def _follow(options: argparse.Namespace, server, job_id: str, more: dict) -> int:
    from pipeline.jobs.submit import duration
    from pipeline.jobs.submitted import exit_code, follow

    out = sys.stderr if options.json else sys.stdout

    def say(text: str) -> None:
        out.write(text)
        out.flush()

    try:
        job = follow(server, job_id, say, _note)
    except KeyboardInterrupt:
        _note(f"\n{job_id}: goes on without you. {_how_to_go_on(options, job_id)}")
        return 0
    _note(f"{job.id}: {job.status.lower()} after {duration(job.seconds())}")
    _tell(options, job, more)
    return exit_code(job)


def _tell(options: argparse.Namespace, job, more: dict) -> None:
    from pipeline.jobs.submitted import facts

    if options.json:
        print(json.dumps(facts(job) | more))


def _how_to_go_on(options: argparse.Namespace, job_id: str) -> str:
    where = f" --cluster {options.cluster}" if options.cluster else ""
    where += f" --profiles {options.profiles}" if options.profiles else ""
    return f"tood jobs logs {job_id} --follow{where}   |   tood jobs stop {job_id}{where}"


def _cluster(options: argparse.Namespace):
    """The cluster that the options name, and how to reach its job server."""
    from pipeline.jobs.profiles import find_cluster

    cluster = find_cluster(options.cluster, options.profiles)

    def connect():
        from pipeline.jobs.server import JobServer

        return JobServer(cluster.profile.jobs, cluster.token())

    return cluster, connect


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

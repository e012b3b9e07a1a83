"""`--cluster NAME` for every verb that takes settings: its addresses from a profile, under the person's own settings."""

import argparse

from pipeline.arguments import children

CLUSTER = "a cluster of cluster.yaml, for its addresses (default: none)"
PROFILES = "file of clusters (default ./cluster.yaml, then ~/.config/tood/cluster.yaml)"


def add_options(parser: argparse.ArgumentParser, cluster: str = CLUSTER, default: str | None = None) -> None:
    parser.add_argument("--cluster", metavar="NAME", help=cluster, default=default)
    parser.add_argument("--profiles", metavar="FILE", help=PROFILES, default=default)


def offer(parser: argparse.ArgumentParser) -> None:
    """Add the options to every verb below that takes settings and has no such options of its own."""
    for verb in children(parser).values():
        offer(verb)
    taken = {action.dest for action in parser._actions}
    if taken & {"settings", "set"} and "cluster" not in taken:
        add_options(parser)


def enter(options: argparse.Namespace) -> None:
    """Put the named cluster's settings under those of the command line, and its variables into this process."""
    if not (getattr(options, "cluster", None) or getattr(options, "profiles", None)):
        return
    into = next((key for key in ("settings", "set") if hasattr(options, key)), None)
    if into is None:  # the verb looks the cluster up itself
        return
    from pipeline.jobs.profiles import find_cluster

    cluster = find_cluster(options.cluster, options.profiles)
    cluster.enter()
    setattr(options, into, [*cluster.local_settings(), *getattr(options, into)])

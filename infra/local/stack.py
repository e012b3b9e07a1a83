"""The whole stack on this machine without containers: Ray on two nodes, MLflow on PostgreSQL, and an S3 server.

    python -m infra.local.stack up        start it, or say that it runs; `make stack`
    python -m infra.local.stack down      end it and keep its data; with --wipe delete these too; `make stack-down`
    python -m infra.local.stack status    what runs, and where

All that it keeps lies in one folder (default runs/stack): data, logs, generated secrets that their owner alone can read, and
what is needed to end it. The entry `local` of cluster.yaml, which `up` writes, leads `tood submit --cluster local` there.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from infra.local import services
from infra.local.database import make_databases
from infra.local.processes import Remembered, Service, StartError, alive, end, family, launch, marked, remember
from infra.local.profile import forget_profile, write_profile

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("postgres", "s3", "mlflow", "ray-head", "ray-node")  # in the order of their start
RAY_STARTS = 3  # Ray gives up after 30 s where a busy machine lets its parts wait for each other
PORTS = {"s3": 8333, "mlflow": 5000, "dashboard": 8265, "gcs": 6379}  # others are taken where these are in use
BUCKET = "detectors"
MARK = "TOOD_STACK"  # in the environment of all that a stack starts
SECRETS = ("s3_access_key", "s3_secret_key", "ray_token", "mlflow_password", "postgres_password", "mlflow_cookie_key")


@dataclass
class State:
    """What `down` must know, written as soon as it is known."""

    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    processes: list[Remembered] = field(default_factory=list)
    s3_ports: list[int] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def ray_folder(self) -> Path:
        """Ray's sockets need a short path, so it does not lie in the stack's own folder."""
        return Path(tempfile.gettempdir()) / f"tood-stack-{self.mark}"


class Stack:
    def __init__(self, folder: Path):
        self.folder = folder.expanduser().absolute()
        self.logs, self.file = self.folder / "logs", self.folder / "stack.json"
        self.state = self._read()

    def running(self) -> dict[str, bool]:
        alive = {known.name for known in self.state.processes if known.find()}
        return {part: part in alive for part in PARTS}

    def start(self, cpus: int) -> None:
        """Start every part, or leave nothing running. Raises StartError."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.state = State()
        self.state.ray_folder.mkdir(mode=0o700)
        self._write()
        keys = self._secrets()
        try:
            self._start_stores(keys)
            for attempt in range(1, RAY_STARTS + 1):
                try:
                    self._start_ray(cpus, keys)
                    break
                except StartError as error:
                    if attempt == RAY_STARTS:
                        raise
                    say(f"{str(error).splitlines()[0]}; trying again")
                    self._end(("ray-node", "ray-head"))
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End what this stack started, youngest first, and nothing else."""
        known = [process for each in self.state.processes if (process := each.find())]
        everyone = family(known) | marked(MARK, self.state.mark)
        self._end(tuple(reversed(PARTS)))
        end([process for process in everyone if alive(process)], grace=0)
        services.remove_sockets(self.state.s3_ports)
        self._keep_ray_logs()
        self.file.unlink(missing_ok=True)
        self.state = State()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One command at a time. Raises StartError where another is at work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StartError(f"another command starts or ends the stack in {self.folder}; wait for it") from None
            yield

    def _start_stores(self, keys: dict[str, str]) -> None:
        say("starting postgres")
        server = services.postgres(self.folder / "postgres", stays=True)
        self._remember("postgres", server.get_pid())
        uri, auth_uri = make_databases(server, keys["postgres_password"], ("mlflow", "mlflow_auth"))

        s3, bucket_server, self.state.s3_ports = services.s3(
            self.folder / "s3", keys["s3_access_key"], keys["s3_secret_key"], services.port_like(PORTS["s3"])
        )
        self._launch(s3)
        bucket_server.make_bucket(BUCKET)
        self.state.addresses["s3"] = bucket_server.endpoint_url

        services.write_private(self.folder / "secrets" / "pgpass", f"*:*:*:postgres:{keys['postgres_password']}\n")
        settings = {"database_uri": auth_uri.replace("%", "%%"), "admin_username": "admin", "default_permission": "NO_PERMISSIONS"}
        settings["authorization_function"] = "mlflow.server.auth:authenticate_request_basic_auth"
        lines = [f"{name} = {value}" for name, value in settings.items()]
        services.write_private(self.folder / "mlflow_auth.ini", "\n".join(["[mlflow]", *lines, ""]))
        environment = bucket_server.env() | {
            "PGPASSFILE": str(self.folder / "secrets" / "pgpass"),
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "mlflow_auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": keys["mlflow_password"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": keys["mlflow_cookie_key"],
        }
        service, self.state.addresses["mlflow"] = services.mlflow(
            uri, f"s3://{BUCKET}/mlflow", services.port_like(PORTS["mlflow"]), environment, ["--app-name", "basic-auth"]
        )
        self._launch(service)

    def _start_ray(self, cpus: int, keys: dict[str, str]) -> None:
        head, other = services.NODE_IPS
        address = f"{head}:{services.port_like(PORTS['gcs'])}"
        s3 = services.S3Server(self.state.addresses["s3"], keys["s3_access_key"], keys["s3_secret_key"])
        # Jobs inherit all this from their node, so that no secret travels with a job.
        environment = s3.env() | {
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": keys["mlflow_password"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "secrets" / "ray_token"),
            "RAY_TMPDIR": str(self.state.ray_folder),
            "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy"), "localhost", services.HOST, *services.NODE_IPS])),
        }
        service, dashboard = services.ray_head(
            address, services.port_like(PORTS["dashboard"]), cpus, environment, keys["ray_token"]
        )
        self.state.addresses |= {"ray": address, "dashboard": dashboard}
        self._launch(service)
        self._launch(services.ray_node(address, dashboard, other, cpus, environment, keys["ray_token"]))

    def _end(self, parts: Sequence[str]) -> None:
        for part in parts:
            for known in [each for each in self.state.processes if each.name == part]:
                if process := known.find():
                    say(f"ending {part}")
                    fast = part == "postgres"  # SIGTERM would make it wait for its clients
                    end([process], 0 if part == "s3" else 15, signal.SIGINT if fast else signal.SIGTERM)
                self.state.processes.remove(known)

    def _launch(self, service: Service) -> None:
        say(f"starting {service.name}")
        service = replace(service, env={**service.env, MARK: self.state.mark})
        before = [each.name for each in self.state.processes]
        launch(service, self.logs, lambda pid: self._remember(service.name, pid), lambda: self._ended(before))

    def _ended(self, parts: Sequence[str]) -> list[str]:
        running = self.running()
        return [part for part in parts if not running[part]]

    def _remember(self, name: str, pid: int) -> None:
        self.state.processes.append(remember(name, pid))
        self._write()

    def _secrets(self) -> dict[str, str]:
        """Made once; they belong to the data, which know them."""
        folder = self.folder / "secrets"
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in SECRETS:
            if not (folder / name).exists():
                services.write_private(folder / name, secrets.token_hex(24))
        return {name: (folder / name).read_text() for name in SECRETS}

    def _keep_ray_logs(self) -> None:
        session = self.state.ray_folder / "ray" / "session_latest" / "logs"
        if session.is_dir():
            shutil.rmtree(self.logs / "ray", ignore_errors=True)
            with contextlib.suppress(shutil.Error, OSError):  # sockets cannot be copied
                shutil.copytree(session, self.logs / "ray", symlinks=True)
        shutil.rmtree(self.state.ray_folder, ignore_errors=True)

    def _read(self) -> State:
        try:
            values = json.loads(self.file.read_text())
            return State(**{**values, "processes": [Remembered(**each) for each in values["processes"]]})
        except FileNotFoundError:
            return State()

    def _write(self) -> None:
        services.write_private(self.file, json.dumps(asdict(self.state), indent=1))


def up(folder: Path, profiles: Path, cpus: int) -> None:
    stack = Stack(folder)
    with stack.alone():
        running = stack.running()
        if all(running.values()):
            say("the stack runs already")
        else:
            if stack.file.exists():
                say("what is left of an earlier stack is ended first")
                stack.end()
            stack.start(cpus)
        written = write_profile(profiles, stack.folder, stack.state.addresses, BUCKET)
        where = "" if written == profiles else f" --profiles {written}"
        if where:
            say(f"{profiles} is your own and left as it is; the entry for this stack is in {written}")
        show(stack)
        say(f"\nnow, from any shell:  tood submit sweep sweeps/demo --cluster local{where}")


def down(folder: Path, profiles: Path, wipe: bool) -> None:
    stack = Stack(folder)
    if not stack.folder.exists():
        say(f"there is no stack in {stack.folder}")
        return
    with stack.alone():
        if stack.file.exists():
            stack.end()
            say("the stack is down" if wipe else f"the stack is down; its data stay in {stack.folder}")
        else:
            say(f"no stack runs in {stack.folder}")
        if wipe:
            forget_profile(profiles, stack.folder)
            shutil.rmtree(stack.folder)
            say(f"{stack.folder} is deleted")


def show(stack: Stack) -> None:
    for part, runs in stack.running().items():
        say(f"{part:10} {'runs' if runs else 'does not run'}")
    for name, address in stack.state.addresses.items():
        say(f"{name:10} {address}")
    say(f"secrets    {stack.folder / 'secrets'}   (MLflow's user is admin, its password in mlflow_password)")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "stack", help="all that the stack keeps")
    parser.add_argument("--profiles", type=Path, default=ROOT / "cluster.yaml", help="file of clusters that gets the entry `local`")
    parser.add_argument("--cpus", type=int, default=max(2, (os.cpu_count() or 2) // 2), help="CPUs that each Ray node declares")
    parser.add_argument("--wipe", action="store_true", help="down: delete the data, logs and secrets too")
    options = parser.parse_args()
    try:
        if options.command == "up":
            up(options.folder, options.profiles, options.cpus)
        elif options.command == "down":
            down(options.folder, options.profiles, options.wipe)
        else:
            stack = Stack(options.folder)
            show(stack)
            return 0 if all(stack.running().values()) else 1
    except (StartError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

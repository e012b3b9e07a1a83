import multiprocessing
import socket
import time

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking import access as mlflow_access
from pipeline.tracking.access import connect, mlflow_client, resolve_uri


def test_no_address_is_a_file_in_the_folder(tmp_path):
    assert resolve_uri("", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_relative_files_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///a/b.db", "elsewhere") == f"sqlite:///{tmp_path}/a/b.db"
    assert resolve_uri("", "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_servers_and_databases_pass(tmp_path):
    for uri in ("http://mlflow:5000", "https://host/mlflow", "postgresql+psycopg2://db/mlflow", "mysql://user@db/mlflow"):
        assert resolve_uri(uri, tmp_path) == uri
    assert resolve_uri("http://mlflow:5000/", tmp_path) == "http://mlflow:5000"


@pytest.mark.parametrize("uri", ["http://me:hunter22@mlflow:5000", "https://atoken@mlflow", "postgresql://me:hunter22@db/x"])
def test_credentials_are_refused_and_not_repeated(uri, tmp_path):
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_USERNAME|\.pgpass") as error:
        resolve_uri(uri, tmp_path)
    assert "hunter22" not in str(error.value)
    assert "atoken" not in str(error.value)


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://host/x", "sqlite://", "databricks"])
def test_other_addresses_are_refused(uri, tmp_path):
    with pytest.raises(TrackingError, match="expected http"):
        resolve_uri(uri, tmp_path)


def test_dead_server_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(TrackingError, match=f"127.0.0.1:{port} cannot be reached; start the server"):
        connect(f"http://127.0.0.1:{port}")


def test_silent_server_costs_seconds(monkeypatch):
    monkeypatch.setattr(mlflow_access, "CONNECT_SECONDS", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()  # connections are made, nothing is ever said
        begin = time.monotonic()
        with pytest.raises(TrackingError, match="does not answer"):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - begin < 5


def test_dead_database(tmp_path):
    with pytest.raises(TrackingError, match=r"cannot be opened: .*start the database"):
        connect("postgresql+psycopg2://127.0.0.1:1/mlflow")


def test_other_files_are_not_databases(tmp_path):
    (tmp_path / "notes.txt").write_text("this is no database at all, and long enough for sqlite to see that" * 20)
    with pytest.raises(TrackingError, match=r"notes\.txt cannot be opened: .*not a database.*name another file"):
        connect(f"sqlite:///{tmp_path}/notes.txt")


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="name a folder that you may write to"):
        connect(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_file_whose_creation_was_cut_off_is_still_empty(tmp_path):
    uri = resolve_uri("", tmp_path)
    process = multiprocessing.get_context("fork").Process(target=connect, args=(uri,))
    process.start()
    while process.is_alive() and not any(file.stat().st_size for file in tmp_path.glob(f".mlflow.db.{'?' * 32}")):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert (tmp_path / "mlflow.db").stat().st_size == 0
    connect(uri)
    assert [experiment.name for experiment in mlflow_client(uri).search_experiments()] == ["Default"]
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_processes_may_create_the_same_file_at_once(tmp_path):
    uri = resolve_uri("", tmp_path / "runs")
    fork = multiprocessing.get_context("fork")  # the quickest way to have several at the same point
    processes = [fork.Process(target=connect, args=(uri,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [experiment.name for experiment in mlflow_client(uri).search_experiments()] == ["Default"]

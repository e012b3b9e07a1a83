"""PostgreSQL for MLflow: databases of its own, and a password even for those who reach its socket."""

from collections.abc import Sequence
from pathlib import Path

import psycopg2
from psycopg2 import sql

from infra.local.processes import StartError


def make_databases(server, password: str, names: Sequence[str]) -> list[str]:
    """SQLAlchemy's addresses, without the password, of databases that are made unless they are there.

    A new server trusts whoever reaches its socket; from the first call on it asks for the password of `postgres`.
    """
    try:
        connection = psycopg2.connect(server.get_uri(), password=password)
    except psycopg2.OperationalError as error:
        raise StartError(
            f"PostgreSQL in {server.pgdata} refuses its password ({str(error).strip()}); data and secrets belong together: "
            "bring back the secrets folder of these data, or delete the data"
        ) from None
    try:
        connection.autocommit = True  # CREATE DATABASE works outside transactions alone
        with connection.cursor() as cursor:
            access = Path(server.pgdata) / "pg_hba.conf"
            if "scram-sha-256" not in access.read_text().split():
                cursor.execute("ALTER USER postgres PASSWORD %s", (password,))
                access.write_text("local all all scram-sha-256\n")
                cursor.execute("SELECT pg_reload_conf()")
            cursor.execute("SELECT datname FROM pg_database")
            there = {name for (name,) in cursor.fetchall()}
            for name in names:
                if name not in there:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    finally:
        connection.close()
    return [server.get_uri(database=name, driver="psycopg2") for name in names]

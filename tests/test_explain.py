"""Addresses in sentences carry no secret."""

import pytest

from resources.explain import explain, without_password


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://u:p@h:1/x", "http://h:1/x"),
        ("http://u:p@ss@h/x", "http://h/x"),
        ("postgresql://u:pa/ss@h/db", "postgresql://h/db"),
        ("https://h/x?token=abc", "https://h/x"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_user_password_and_query_are_never_shown(uri: str, shown: str):
    assert without_password(uri) == shown


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "Detected out-of-date database schema (found version deadbeef0000, but expected dc11669786a5). Take",
            "sqlite:///x: the store's schema is deadbeef0000, and the MLflow here knows dc11669786a5; if another",
        ),
        (
            "(sqlite3.OperationalError) no such column: trace_info.session_id\n[SQL: SELECT secret]",
            "sqlite:///x: the database lacks what is asked for (no such column: trace_info.session_id); if it is being",
        ),
        (
            "(psycopg2.errors.UndefinedColumn) column t.session_id does not exist\nLINE 1: SELECT secret",
            "sqlite:///x: the database lacks what is asked for (column t.session_id does not exist); if it is being",
        ),
    ],
)
def test_a_store_that_was_upgraded_is_told_from_an_old_one(error: str, said: str):
    from mlflow.exceptions import MlflowException

    found = explain(MlflowException(error), "sqlite:///x")
    assert found is not None
    assert found.startswith(said)
    assert "secret" not in found


def test_a_database_that_is_not_mlflows_is_not_told_to_be_upgraded():
    assert explain(RuntimeError("(sqlite3.OperationalError) no such table: event_logs"), "sqlite:///x") is None

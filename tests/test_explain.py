"""Addresses in sentences carry no secret."""

import pytest

from resources.explain import without_password


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

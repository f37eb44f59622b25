#!/bin/sh
# The tests of the database reader start a PostgreSQL of their own; install it where it is missing and we may.
set -eu
if command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    exit 0
fi
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "Installing PostgreSQL for the tests of the database reader ..."
    apt-get update -qq >/dev/null
    # The server is started by the tests: the package must not start one of its own.
    mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null
    exit 0
fi
echo "Tests of the database reader on PostgreSQL are left out: install the package postgresql of your system." >&2

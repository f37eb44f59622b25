#!/bin/sh
# Prints a new folder for what tests write: in memory where there is room, since nearly every test waits for SQLite to
# have its file on the disk. Who asks for it removes it.
memory=/dev/shm
room=$(df -Pk "$memory" 2>/dev/null | awk 'NR == 2 { print $4 }')
if [ "${room:-0}" -gt 4000000 ] && [ -w "$memory" ]; then
    exec mktemp -d "$memory/lifecycle-tests-XXXXXX"
fi
exec mktemp -d

#!/bin/bash
# Runs a launcher in a container, and ends with the exit code of the training, which launchers hide. A request to stop
# (SIGTERM) is handed on, so that the training can save. Use: launch.sh RUN COMMAND…, with RUN the training's --out.
set -u
run=$1
shift
GLIOMA_DIST_EXIT_CODES=$(mktemp -d)
export GLIOMA_DIST_EXIT_CODES
"$@" &
launcher=$!
trap 'kill -TERM "$launcher" 2>/dev/null' TERM INT
while kill -0 "$launcher" 2>/dev/null; do
  wait "$launcher" # ends early at each signal
done
trap '' TERM INT
glioma-dist run-status "$run" --exit-codes "$GLIOMA_DIST_EXIT_CODES" --exit
code=$?
rm -rf "$GLIOMA_DIST_EXIT_CODES"
exit "$code"

#!/bin/sh
# Makes the Python environment of the benchmarks and the goldens: bench/setup.sh [FOLDER], by default bench/.venv.
set -eu
here=$(dirname "$0")
venv=${1:-"$here/.venv"}
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --requirement "$here/requirements.txt"

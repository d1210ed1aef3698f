#!/bin/sh
# Runs every study that there is at the level `full`, and writes what came out into the table of docs/studies.md. A study whose run
# directory is in runs/full already is not run again; remove it to have it run anew.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --quiet -p endoscope-cli
endoscope=target/release/endoscope
mkdir -p runs/full

for slug in $("$endoscope" study list | awk '$2 == "runs" { print $3 }'); do
    [ -d "runs/full/$slug" ] || "$endoscope" study run "$slug" --out "runs/full/$slug"
done
"$endoscope" study table runs/full/*/ > runs/full/table.md

# What stands between the two marks is replaced.
awk '
    FNR == NR { table = table $0 "\n"; next }
    /^<!-- end of the table -->$/ { within = 0 }
    !within { print }
    /^<!-- written by tools\/studies.sh -->$/ { printf "\n%s\n", table; within = 1 }
' runs/full/table.md docs/studies.md > runs/full/studies.md
mv runs/full/studies.md docs/studies.md

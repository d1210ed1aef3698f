#!/usr/bin/env bash
# The worked example of docs/example-names.md: which circuit of stories260k decides the name that comes next.
# Usage: tools/examples/names.sh [OUT]
# The model is looked for in $ENDOSCOPE_SHARED/models/stories260k, or in ../shared beside the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${ENDOSCOPE_SHARED:-../shared}/models/stories260k
out=${1:-runs/names}
[ -d "$model" ] || { echo "there is no $model: set ENDOSCOPE_SHARED" >&2; exit 1; }
endoscope=${ENDOSCOPE:-target/release/endoscope}
[ -x "$endoscope" ] || cargo build --release -p endoscope-cli
mkdir -p "$out"
prompts=$out/names.json
cat > "$prompts" <<'PAIRS'
{"prompts": [
  {"clean": "Once upon a time, there was a little girl named", "corrupt": "Once upon a time, there was a little boy named", "answers": [" Lily"], "wrong_answers": [" Tim"]},
  {"clean": "Once upon a time there was a girl named", "corrupt": "Once upon a time there was a boy named", "answers": [" Lily"], "wrong_answers": [" Tim"]},
  {"clean": "One day, a little girl named", "corrupt": "One day, a little boy named", "answers": [" Lily"], "wrong_answers": [" Tim"]},
  {"clean": "There was a happy girl named", "corrupt": "There was a happy boy named", "answers": [" Lily"], "wrong_answers": [" Tim"]}
]}
PAIRS
run() {
  local name=$1
  shift
  "$endoscope" "$1" "$model" --prompts "$prompts" "${@:2}" --out "$out/$name"
}
run stream patch --site resid_post --over layer,position --align last
run direct attribute
run heads attribute --method integrated --steps 10 --site z --over layer,head
run edges attribute --method eap-ig --steps 10
run circuit circuit --edges 170
run control circuit --edges 170 --method eap

#!/usr/bin/env bash
# The main job on real boards: train on tiles of good images, calibrate, make a recording of
# 1280x1280 frames out of test images, and replay it on two cameras; twice, which must agree. Then
# look at all test images: a report to open in a browser.
#
#     tools/deeppcb_line.sh [OUT]        OUT: deeppcb-out by default; data: $LINEWATCH_DATA or
#                                        ../shared/data
set -euo pipefail
cd "$(dirname "$0")/.."
data=${LINEWATCH_DATA:-../shared/data}/deeppcb
out=${1:-deeppcb-out}
python=.venv/bin/python
linewatch=.venv/bin/linewatch
if [ ! -d "$data" ]; then
    echo "$data: not there; set LINEWATCH_DATA to the folder that holds deeppcb/" >&2
    exit 3
fi
rm -rf "$out"
mkdir -p "$out"

# A board turned or mirrored is a board, and what it shows lies elsewhere on it again.
boards="--set augment.mirror=true --set augment.quarter_turns=true --set precedents=true --set wide_view=true --set wide_crop_px=256 --set wide_steps=3000"
# shellcheck disable=SC2086
trained=$($linewatch train "$data/train/good" --steps 2000 --set accumulate=2 $boards --out "$out/bundles" --json | $python -c 'import json, sys; print(json.load(sys.stdin)["bundle"])')
echo "trained: $trained"
types=1=open,2=short,3=mousebite,4=spur,5=copper,6=pin-hole
$linewatch recipe set "$out/boards.yaml" box_margin_px=12 --reason "chosen on val: boxes as drawn"
$linewatch recipe set "$out/boards.yaml" optics.watch=warn \
    --reason "pieces cut from scans of many boards, some nearly empty: no one camera's view"
$linewatch calibrate "$trained" --good "$data/val/good" --bad "$data/val/defect" \
    --boxes "$data/boxes" --types "$types" --recipe "$out/boards.yaml" \
    --policy youden --json >"$out/calibration.json"
bundle=$($python -c 'import json, sys; print(json.load(sys.stdin)["bundle"])' <"$out/calibration.json")
echo "calibrated: $bundle"

$python -m tools.make_recording --good "$data/test/good" --defect "$data/test/defect" \
    --boxes "$data/boxes" --types open,short,mousebite,spur,copper,pin-hole \
    --frames 60 --grid 2x2 --seed 1 --out "$out/boards.mkv"
for run in 1 2; do
    $linewatch replay "$out/boards.mkv" --cameras 2 --bundle "$bundle" --out "$out/boards-$run.jsonl"
done
cmp "$out/boards-1.jsonl" "$out/boards-2.jsonl"
echo "both replays gave the same verdicts"
$python - "$out/boards-1.jsonl" <<'PYTHON'
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1])]
ids = {camera: [r["frame_id"] for r in rows if r["camera"] == camera] for camera in ("cam0", "cam1")}
assert ids["cam0"] == ids["cam1"] == list(range(1, 61)), "ids with gaps"
print(f"{len(rows)} verdicts for 2 x 60 frames, ids without gaps")
PYTHON

$linewatch replay "$data/test/good" "$data/test/defect" --bundle "$bundle" \
    --recipe "$out/boards.yaml" --out "$out/images.jsonl"
$python -m tools.auroc "$out/images.jsonl" --least 0.98
$linewatch evaluate "$bundle" --good "$data/test/good" --bad "$data/test/defect" \
    --boxes "$data/boxes" --types "$types" --recipe "$out/boards.yaml" \
    --title "DeepPCB boards" --report "$out/report.html" --json >"$out/evaluation.json"
echo "report: $out/report.html"

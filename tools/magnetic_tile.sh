#!/usr/bin/env bash
# Magnetic tiles (grey images of all sizes, masks, five types of defects): train, calibrate, look at
# all test images; a report to open in a browser.
#
#     tools/magnetic_tile.sh [OUT]       OUT: magnetic-out by default; data: $LINEWATCH_DATA or
#                                        ../shared/data
set -euo pipefail
cd "$(dirname "$0")/.."
data=${LINEWATCH_DATA:-../shared/data}/magnetic_tile
out=${1:-magnetic-out}
python=.venv/bin/python
linewatch=.venv/bin/linewatch
if [ ! -d "$data" ]; then
    echo "$data: not there; set LINEWATCH_DATA to the folder that holds magnetic_tile/" >&2
    exit 3
fi
rm -rf "$out"
mkdir -p "$out"
bundle_of() { $python -c 'import json, sys; print(json.load(sys.stdin)["bundle"])'; }

$linewatch recipe set "$out/tiles.yaml" box_fraction=0.1 box_margin_px=4 merge_px=16 --reason "chosen on val"
surfaces="--set augment.mirror=true --set wide_view=true --set wide_scales=[1,2] --set wide_steps=2000"
# shellcheck disable=SC2086
trained=$($linewatch train "$data/train/good" --scales 1,2 $surfaces --out "$out/bundles" --json | bundle_of)
echo "trained: $trained"
$linewatch calibrate "$trained" --good "$data/val/good" --bad "$data/val" --masks "$data/ground_truth" \
    --recipe "$out/tiles.yaml" --policy youden --json >"$out/calibration.json"
bundle=$(bundle_of <"$out/calibration.json")
echo "calibrated: $bundle"
$linewatch evaluate "$bundle" --good "$data/test/good" --bad "$data/test" --masks "$data/ground_truth" \
    --recipe "$out/tiles.yaml" --title "Magnetic tiles" --report "$out/report.html" --json >"$out/evaluation.json"
echo "report: $out/report.html"

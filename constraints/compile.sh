#!/bin/sh
# Pins what pyproject.toml asks for, one file per Python. Called by `make constraints`: compile.sh UV [--upgrade]
set -eu
uv=$1; shift
cd "$(dirname "$0")/.."
work=.venv-constraints/work; mkdir -p "$work"
pin() {  # name, options...: constraints/name.txt serves as preference and is replaced
    name=$1; shift
    cp "constraints/$name.txt" "$work/$name.txt" 2>/dev/null || rm -f "$work/$name.txt"
    "$uv" pip compile --quiet --no-emit-index-url --no-annotate --no-header -o "$work/$name.txt" "$@" pyproject.toml
}
title() { echo "# Versions for $1. Written by \`make constraints\`; pyproject.toml holds the lower bounds."; }
echo "mpmath<1.4" > "$work/shared.in"  # dp-accounting and, by way of sympy, torch ask for it: one version serves both
for minor in 11 12 13; do
    pin "py3$minor" --extra test --extra dev --extra docs --extra flower --extra tpu --python-version "3.$minor" \
        -c "$work/shared.in" "$@"
    { title "Python 3.$minor"; cat "$work/py3$minor.txt"; } > "constraints/py3$minor.txt"
done
# What the lower bounds themselves name, with the newest of everything else that still goes with it.
{ cat "$work/shared.in"; echo "pyparsing<3.3"; } > "$work/oldest.in"  # later ones warn of names that matplotlib 3.10.0 uses
pin oldest --resolution lowest-direct --extra test --extra dev --python-version 3.11 -c "$work/oldest.in" "$@"
{ title "Python 3.11, the lower bounds themselves"; cat "$work/oldest.txt"; } > constraints/oldest.txt
# The macOS wheel of torch asks for what every CPU build asks for; Linux metadata on the index names CUDA packages.
echo "torch==2.13.0" > "$work/torch.in"
MACOSX_DEPLOYMENT_TARGET=14.0 pin peers --extra peers --python-version 3.11 --python-platform aarch64-apple-darwin \
    -c "$work/torch.in" -c constraints/py311.txt "$@"
# Names pinned per Python stay there alone, so that both files may be given to pip together.
{ title "comparisons with torch and transformers, on top of any py3*.txt"
  sed 's/==.*/==/' constraints/py3*.txt | grep -v '^#' | sort -u > "$work/names.txt"
  while read -r line; do grep -qxF "${line%%==*}==" "$work/names.txt" || echo "$line"; done < "$work/peers.txt"
} > constraints/peers.txt

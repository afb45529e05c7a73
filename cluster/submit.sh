#!/bin/bash
# Submits the acceptance suite to SLURM: an array of parts, and a job after it that merges and judges them.
# docs/clusters.md
set -eu
usage() {
    cat <<'END'
usage: cluster/submit.sh [--dry-run] [--parts N | --per-case] [--root NAME] [--sbatch OPTION]... [-- PYTEST OPTION...]

  --parts N         split the cases into N parts, one array task each (4)
  --per-case        one array task a case
  --root NAME       merged root below output/train (cluster); the parts work in NAME_1ofN ...
  --sbatch OPTION   for the array, as sbatch takes it: --sbatch --partition=gpu --sbatch --time=04:00:00
  --dry-run         print the commands, submit nothing
  --                what follows goes to pytest: -- --longcycle-options tests/acceptance/nightly.yaml --cases a,b

PYTHON names another interpreter than .venv/bin/python. More: docs/clusters.md
END
}
fail() {
    echo "error: $1 (cluster/submit.sh --help)" >&2
    exit 2
}

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
dry="" parts=4 root=cluster
sbatch=()
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry=yes ;;
    --per-case) parts=cases ;;
    --parts | --root | --sbatch)
        [ $# -gt 1 ] || fail "$1 needs a value"
        case $1 in
        --parts) parts=$2 ;;
        --root) root=$2 ;;
        --sbatch) sbatch+=("$2") ;;
        esac
        shift
        ;;
    --) shift && break ;;
    *) fail "unknown option $1" ;;
    esac
    shift
done

command -v "$python" >/dev/null || fail "there is no $python: run 'make setup' first, or name an interpreter by PYTHON"

# What pytest would run decides how many parts there can be, and wrong options are found now, not in the queue.
listed=$("$python" -m pytest -m longcycle "$@" --collect-only -q 2>&1) || { echo "$listed" >&2 && fail "see above"; }
count=$(grep -c '::test_longcycle\[' <<<"$listed")
[ "$parts" != cases ] || parts=$count
[[ $parts =~ ^[1-9][0-9]*$ ]] || fail "--parts $parts: give a whole number"
[ "$parts" -le "$count" ] || fail "--parts $parts: only $count cases are selected"
[[ $root =~ ^[A-Za-z0-9._-]+$ ]] || fail "--root $root: letters, digits, dots, dashes and underscores"

submit() { # or print, with quotes where a shell needs them
    if [ -z "$dry" ]; then
        sbatch "$@"
        return
    fi
    printf sbatch
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:,=%+-]+$ ]]; then printf ' %s' "$word"; else printf ' %q' "$word"; fi
    done
    echo
}
exported="ALL,LONGCYCLE_ROOT=$root,LONGCYCLE_PARTS=$parts"
array=$(submit --parsable --array="1-$parts" --export="$exported" ${sbatch[@]+"${sbatch[@]}"} \
    cluster/longcycle.sbatch "$@")
if [ -n "$dry" ]; then
    echo "$array"
    array=ARRAY_JOB
fi
array=${array%%;*} # with several clusters: job;cluster
judge=$(submit --parsable --dependency="afterany:$array" --export="$exported" cluster/judge.sbatch "$@")
if [ -n "$dry" ]; then
    echo "$judge"
else
    echo "array job $array: $count cases in $parts parts; job ${judge%%;*} judges them in output/train/$root"
fi

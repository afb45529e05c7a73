#!/bin/sh
# Sets up the virtual environment and names (or, where it may, installs) the Debian packages that off-screen rendering
# needs. Called by make; PYTHON picks the interpreter, VENV the folder, CONSTRAINTS the tested set (constraints.txt).
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
CONSTRAINTS=${CONSTRAINTS:-constraints.txt}

if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
    echo "error: Python 3.11 to 3.13 is needed, $PYTHON is $("$PYTHON" -V 2>&1 || echo missing)." \
         "Name another one: make PYTHON=python3.12 ..." >&2
    exit 2
fi

# watched WHAT COMMAND...: run it with its output in a log, and show that it goes on: one line that renews itself on a
# terminal, a line a minute elsewhere. When it fails, the end of its output follows.
LOG=$(mktemp "${TMPDIR:-/tmp}/mimickit-setup.XXXXXX")
trap 'rm -f "$LOG"' EXIT
watched() {
    what=$1; shift; seconds=0
    : >"$LOG"
    "$@" >"$LOG" 2>&1 </dev/null &
    job=$!
    trap 'kill "$job" 2>/dev/null; exit 130' INT TERM
    [ -t 1 ] || echo "setup: $what"
    while kill -0 "$job" 2>/dev/null; do
        line=$(printf 'setup: %s, %d:%02d  %s' "$what" $((seconds / 60)) $((seconds % 60)) \
            "$(tail -n 1 "$LOG" | tr -cd '[:print:]' | sed 's/^ *//')")
        if [ -t 1 ]; then
            columns=$(stty size 2>/dev/null </dev/tty | cut -d' ' -f2) || columns=""
            [ "${columns:-0}" -gt 0 ] || columns=80
            printf '\r\033[K%.*s' $((columns - 1)) "$line"
        elif [ $((seconds % 60)) = 59 ]; then
            printf '%.200s\n' "$line"
        fi
        sleep 1
        seconds=$((seconds + 1))
    done
    [ ! -t 1 ] || printf '\r\033[K'
    trap - INT TERM
    if wait "$job"; then
        printf 'setup: %s: done in %d:%02d\n' "$what" $((seconds / 60)) $((seconds % 60))
    else
        echo "setup: $what: failed" >&2
        tail -n 20 "$LOG" >&2
        return 1
    fi
}

# --- off-screen rendering: the EGL loader, and Mesa's software renderer where no GPU driver brings one
packages=""
has() { ldconfig -p 2>/dev/null | grep -q "$1"; }
has libEGL.so.1 || packages="$packages libegl1"
has libGL.so.1 || packages="$packages libgl1"
mesa() { for file in /usr/lib/*/dri/swrast_dri.so /usr/lib/*/libgallium*.so; do [ ! -e "$file" ] || return 0; done; return 1; }
if ! has libEGL_nvidia.so && ! mesa; then
    packages="$packages libgl1-mesa-dri"
fi
if [ -n "$packages" ]; then
    if command -v apt-get >/dev/null 2>&1 && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
        as_root=""; [ "$(id -u)" = 0 ] || as_root="sudo -n"
        # shellcheck disable=SC2086
        watched "Debian's list of packages" $as_root apt-get update &&
            watched "Debian packages for off-screen rendering" $as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y --no-install-recommends $packages ||
            echo "setup: that failed; videos need:$packages" >&2
    else
        echo "setup: videos need these packages, please install them: apt-get install$packages" >&2
    fi
fi

# --- Python packages, exactly as tested
if [ ! -x "$VENV/bin/python" ]; then
    watched "$VENV with $("$PYTHON" -V)" "$PYTHON" -m venv "$VENV"
fi
# torch first and alone: its build (CPU or CUDA) is then settled for everything that depends on it
pip="$VENV/bin/python -m pip install --no-compile --disable-pip-version-check --progress-bar off -c $CONSTRAINTS"
# shellcheck disable=SC2086
watched "torch (some minutes the first time)" $pip "$(grep '^torch==' "$CONSTRAINTS")"
# shellcheck disable=SC2086
watched "all other Python packages" $pip -e ".[test,tensorboard]"
watched "first import: Python keeps the bytecode" env -u PYTHONDONTWRITEBYTECODE \
    "$VENV/bin/python" -c "import mimickit.engines.newton_engine, mimickit.learning.methods, mujoco_warp"
echo "setup: done"

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
        echo "setup: installing Debian packages for off-screen rendering:$packages"
        # shellcheck disable=SC2086
        $as_root apt-get -qq update && $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install -y --no-install-recommends $packages >/dev/null ||
            echo "setup: that failed; videos need:$packages" >&2
    else
        echo "setup: videos need these packages, please install them: apt-get install$packages" >&2
    fi
fi

# --- Python packages, exactly as tested
if [ ! -x "$VENV/bin/python" ]; then
    echo "setup: creating $VENV with $("$PYTHON" -V)"
    "$PYTHON" -m venv "$VENV"
fi
echo "setup: installing Python packages (some minutes the first time)"
# torch first and alone: its build (CPU or CUDA) is then settled for everything that depends on it
"$VENV/bin/python" -m pip install -q --disable-pip-version-check "$(grep '^torch==' "$CONSTRAINTS")" \
    -c "$CONSTRAINTS"
"$VENV/bin/python" -m pip install -q --disable-pip-version-check -c "$CONSTRAINTS" -e ".[test,tensorboard]"
echo "setup: done"

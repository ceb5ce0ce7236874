# Sourced by the scripts beside it: makes the virtual environment .venv from the lock files, once per state of them.
# Afterwards $python is its interpreter. Needs Python 3.11 with venv; nothing else, and no root.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
python="$venv/bin/python"

say() { printf '%s\n' "$*" >&2; }
stop() { say "$*"; exit 2; }

find_python() {
    for candidate in "${EDGEEXPORT_PYTHON:-}" python3.11 python3 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    stop "Python 3.11 is missing: install it (Debian: apt install python3.11-venv), or set EDGEEXPORT_PYTHON to it."
}

# Usage: make_environment LOCK...   The first lock file is what a build needs.
make_environment() {
    local base stamp lock
    base=$(find_python) || exit 2
    "$base" -c 'import venv, ensurepip' 2>/dev/null ||
        stop "This Python has no venv: install it (Debian: apt install python3.11-venv)."
    stamp=$(cd "$root" && cat "$@" pyproject.toml scripts/environment.sh | sha256sum | cut -d' ' -f1)
    [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && return
    say "Making $venv with ${#} lock file(s). It takes about 3 GB of disk and downloads about:"
    say "  $(download_size "$@"); into pip's cache, so that a second time it downloads nothing."
    rm -rf "$venv"
    "$base" -m venv "$venv"
    # torch first and alone: an open range would take a build with CUDA, several GB more.
    "$python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$root/requirements.lock")" --no-deps
    for lock in "$@"; do
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$root/$lock"
    done
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e "$root"
    printf '%s\n' "$stamp" >"$venv/stamp"
}

# The sizes of the wheels, measured on x86-64 Linux; torch as the CPU build.
download_size() {
    case "$*" in
    *test*) echo "1.0 GB (torch 190 MB, tensorflow 260 MB, the rest of the converters 450 MB, the demo's model 85 MB)" ;;
    *) echo "0.7 GB (torch 190 MB, the rest of the converters 450 MB, the demo's model 85 MB)" ;;
    esac
}

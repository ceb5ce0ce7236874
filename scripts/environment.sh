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

# Usage: make_environment LOCK...   The first lock file is what a build needs; more are installed on top of it.
make_environment() {
    local base lock stamp
    [ -f "$venv/$1.stamp" ] && [ "$(cat "$venv/$1.stamp")" = "$(stamp_of "$1")" ] || {
        base=$(find_python) || exit 2
        "$base" -c 'import venv, ensurepip' 2>/dev/null ||
            stop "This Python has no venv: install it (Debian: apt install python3.11-venv)."
        say "Making $venv, once. $(sizes "$@")"
        rm -rf "$venv"
        "$base" -m venv "$venv"
        # torch first and alone: an open range would take a build with CUDA, several GB more.
        install "$(grep '^torch==' "$root/$1")"
        install "$(grep '^setuptools==' "$root/$1")"
        install --no-build-isolation -e "$root"
    }
    for lock in "$@"; do
        stamp=$(stamp_of "$lock")
        [ -f "$venv/$lock.stamp" ] && [ "$(cat "$venv/$lock.stamp")" = "$stamp" ] && continue
        install -r "$root/$lock"
        printf '%s\n' "$stamp" >"$venv/$lock.stamp"
    done
}

install() { "$python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }
stamp_of() { cat "$root/$1" "$root/pyproject.toml" "$root/scripts/environment.sh" | sha256sum | cut -d' ' -f1; }

# The sizes of the wheels and of the environment, measured on x86-64 Linux with the CPU build of torch.
sizes() {
    case "$*" in
    *test*) echo "Downloads about 950 MB (torch 190, tensorflow 275, the demo's model 85, the other packages 400) and takes 3.9 GB of disk." ;;
    *) echo "Downloads about 610 MB (torch 190, the demo's model 85, the other packages 335) and takes 2.4 GB of disk." ;;
    esac
}

# Makes the environment in .venv, or reuses the one already there. Sourced by demo.sh and test.sh; `bash scripts/setup.sh` also works.
# FEDJAX_CORE_VENV names another folder than .venv.
#
# The environment holds what pyproject.toml asks for, in the versions of constraints.txt; from Python 3.13 on, which the newest
# releases of JAX need, in those of constraints-newest.txt. A stamp inside it, written last, says which
# of these it was made from, so that the next call installs again only after a change. Where an install was cut short, a package may be
# there by half and look whole to pip: the environment is then made anew.

# The working directory and the caller's Python settings must not decide what is installed or imported.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

suitable_python() {
    # Prints the first Python from 3.11 to 3.13 that runs and can make environments. FEDJAX_CORE_PYTHON names one to use instead.
    local candidate
    for candidate in ${FEDJAX_CORE_PYTHON:+"$FEDJAX_CORE_PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        # Running it is the test: a version manager puts names on the PATH that start nothing.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
        if [ -n "${FEDJAX_CORE_PYTHON:-}" ]; then
            echo "error: FEDJAX_CORE_PYTHON=$FEDJAX_CORE_PYTHON is not a Python 3.11, 3.12 or 3.13 with venv" >&2
            return 1
        fi
    done
    echo "error: no Python 3.11, 3.12 or 3.13 with venv found (looked for python3.11, python3.12, python3.13, python3, python)." >&2
    echo "Install one (on Debian or Ubuntu: apt install python3 python3-venv), or name it: FEDJAX_CORE_PYTHON=/path/to/python" >&2
    return 1
}

set_up() {
    # set_up REPOSITORY: afterwards REPOSITORY/$venv/bin/python has the package and its development tools.
    local repository="$1" venv="$1/${FEDJAX_CORE_VENV:-.venv}" python wanted constraints
    if [ -e "$venv/installing" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        [ -e "$venv" ] && echo "setup: $venv is incomplete or broken"
        python="$(suitable_python)" || return 1
        echo "setup: making $venv with $python ($("$python" --version 2>&1))"
        "$python" -m venv --clear "$venv" || return 1
    fi
    constraints="$("$venv/bin/python" -c 'import sys; print("constraints-newest.txt" if sys.version_info >= (3, 13) else "constraints.txt")')"
    wanted="$("$venv/bin/python" - "$repository" "$constraints" <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
text = b"".join((root / name).read_bytes() for name in ("pyproject.toml", sys.argv[2]))
print(hashlib.sha256(text + str(root).encode() + sys.version.encode()).hexdigest())
PYTHON
)" || return 1
    if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$wanted" ]; then
        echo "setup: reusing $venv ($("$venv/bin/python" --version))"
        return 0
    fi
    echo "setup: installing fedjax-core and its tools into $venv (the first time takes a few minutes)"
    touch "$venv/installing"
    rm -f "$venv/stamp"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$repository/$constraints" -e "$repository[dev,cluster]" || {
        echo "error: the installation failed; what pip said is above. Run the same command to try again." >&2
        return 1
    }
    echo "$wanted" >"$venv/stamp"
    rm "$venv/installing"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set_up "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
fi

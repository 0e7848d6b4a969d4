#!/usr/bin/env bash
# Runs claim.py with its requirements, which are installed once into the cache (HEARTH_CACHE, ~/.cache/hearth).
#   examples/python/run.sh --socket /run/hearth/hearth.sock --pool python
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${HEARTH_CACHE:-${HOME:-/root}/.cache/hearth}
# Another Python or other requirements: another environment.
key=$({ python3 --version; cat "$here/requirements.txt"; } | sha256sum | cut -c1-12)
venv=$cache/venv-$key

if [ ! -x "$venv/bin/python" ]; then
  fresh=$venv.$$
  trap 'rm -rf "$fresh"' EXIT
  mkdir -p "$cache"
  python3 -m venv "$fresh"
  # pip's own scripts name the place they were made in; only `python` is used from here, so the move is safe.
  "$fresh/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  # Somebody else may have been faster.
  mv -T "$fresh" "$venv" 2>/dev/null || [ -x "$venv/bin/python" ]
fi

exec "$venv/bin/python" "$here/claim.py" "$@"

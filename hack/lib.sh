# Words and small steps that the scripts of hack/ share. Sourced, never run.

CACHE=${HEARTH_CACHE:-${HOME:-/root}/.cache/hearth}
BIN=${HEARTH_BIN_DIR:-$CACHE/bin}

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' GREEN='' RED='' PLAIN=''
fi

say() { printf '  %s\n' "$*"; }
have() { printf '  %s✓%s %s\n' "$GREEN" "$PLAIN" "$*"; }
doing() { printf '  %s…%s %s\n' "$BOLD" "$PLAIN" "$*"; }
die() {
  printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
  exit 1
}

# run_logged NAME COMMAND...: quiet when it works; its last lines and the place of its log when it does not.
run_logged() {
  local log=$CACHE/logs/$1.log began=$SECONDS
  shift
  mkdir -p "$CACHE/logs"
  if "$@" >"$log" 2>&1; then
    [ $((SECONDS - began)) -lt 5 ] || say "${DIM}took $((SECONDS - began)) s${PLAIN}"
    return 0
  fi
  tail -n 15 "$log" >&2
  say "the whole log: $log" >&2
  return 1
}

go_version() { "$1" env GOVERSION 2>/dev/null | sed 's/^go//'; }
newer_or_same() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | tail -1)" = "$1" ]; }

# pinned GO_MOD MODULE: the version a go.mod requires.
pinned() { awk -v module="$2" '$1 == module { print $2 } $1 == "require" && $2 == module { print $3 }' "$1" | head -1; }

# link TARGET NAME: an atomic symlink.
link() {
  [ "$(readlink "$2" 2>/dev/null)" = "$1" ] && return
  ln -sfn "$1" "$2.$$"
  mv -T "$2.$$" "$2"
}

#!/usr/bin/env bash
# hearth on one screen: a real containerd, real gVisor sandboxes, a claim beside `ctr run` of the same image.
# Uses directories, sockets and cgroups of its own, and checks at the end that nothing of them is left.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

WARM=${HEARTH_DEMO_WARM:-10}
ROOT=
DAEMON=
OUTSIDE=

title() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
typed() { printf '  %s$ %s%s\n' "$DIM" "$*" "$PLAIN"; }
told() { sed 's/^/    /'; }
seconds() { awk -v ns="$1" 'BEGIN { s = ns / 1e9; if (s < 0.1) printf "%.2f ms", s * 1000; else printf "%.2f s", s }'; }
now() { date +%s%N; }
ctl() { target/release/hearthctl --socket "$ROOT/s" "$@"; }
field() { python3 -c 'import json,sys; v=json.load(sys.stdin)
for k in sys.argv[1].split("."): v=v[int(k)] if isinstance(v,list) else v[k]
print(v)' "$1"; }

# bar SHARE TEXT: one line that is drawn over on a terminal.
bar() {
  local width=24 full
  full=$(($1 * width / 100))
  [ -t 1 ] && printf '\r'
  printf '  %s%s %s' "$(printf '%*s' "$full" '' | sed 's/ /█/g')" "$(printf '%*s' $((width - full)) '' | sed 's/ /░/g')" "$2"
  [ -t 1 ] || printf '\n'
}

# What a hearth of this root would leave: told as a list, empty when clean.
leftovers() {
  pgrep -af -- "$ROOT/" | grep -v "^$$ " | sed 's/^/process /' || :
  awk -v root="$ROOT/" 'index($2, root) == 1 { print "mount " $2 }' /proc/mounts
  find /sys/fs/cgroup -maxdepth 3 -type d -name "$(basename "$ROOT")" 2>/dev/null | sed 's/^/cgroup /'
  ip netns list 2>/dev/null | grep -E "hearth|^hd" | sed 's/^/netns /' || :
  [ ! -e "$ROOT" ] || find "$ROOT" -mindepth 1 ! -name hearthd.log | head -20 | sed 's/^/file /'
}

# An outside of the demo's own: a network namespace for the node, and one that plays the internet with a web server on two
# public addresses. Nothing leaves this machine.
outside() {
  local name
  name=$(basename "$ROOT") && name=hd${name##*.}
  ip netns add "${name}n" && ip netns add "${name}o"
  OUTSIDE=$name
  ip -n "${name}n" link set lo up && ip -n "${name}o" link set lo up
  ip -n "${name}n" link add wire type veth peer name wire netns "${name}o"
  ip -n "${name}n" address add 11.0.0.1/24 dev wire && ip -n "${name}n" link set wire up
  ip -n "${name}o" address add 11.0.0.2/24 dev wire && ip -n "${name}o" link set wire up
  ip -n "${name}n" route add default via 11.0.0.2
  ip -n "${name}o" address add 11.1.1.1/32 dev lo && ip -n "${name}o" address add 11.1.1.2/32 dev lo
  ip netns exec "${name}o" python3 -c '
import http.server
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b"the internet says hello\n")
    def log_message(self, *_): pass
http.server.HTTPServer(("0.0.0.0", 80), Page).serve_forever()' &
  SERVER=$!
}
no_outside() {
  [ -n "$OUTSIDE" ] || return 0
  kill "$SERVER" 2>/dev/null || :
  wait "$SERVER" 2>/dev/null || :
  ip netns del "${OUTSIDE}n" && ip netns del "${OUTSIDE}o"
  OUTSIDE=
}

# Ends the daemon, which ends its sandboxes and its containerd. Also after Ctrl-C in the middle.
stop() {
  [ -n "$DAEMON" ] || return 0
  kill -TERM "$DAEMON" 2>/dev/null || :
  wait "$DAEMON" 2>/dev/null || :
  DAEMON=
}
cleanup() {
  local code=$?
  trap - EXIT INT TERM
  if [ -n "$DAEMON" ]; then
    printf '\n  ending what the demo started …\n'
    stop
  fi
  # 130 and 143: somebody wanted it to end.
  if [ "$code" != 0 ] && [ "$code" != 130 ] && [ "$code" != 143 ] && [ -s "$ROOT/hearthd.log" ]; then
    printf '\n%sthe demo failed; the end of hearthd'\''s log:%s\n' "$RED" "$PLAIN" >&2
    tail -n 20 "$ROOT/hearthd.log" >&2
  fi
  no_outside || :
  [ -z "$ROOT" ] || rm -rf "$ROOT"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

prepare() {
  title "Getting ready"
  hack/setup.sh
  hack/image.sh
  hack/build.sh release
}

start() {
  title "A node of its own: hearthd with its own containerd"
  ROOT=$(mktemp -d /tmp/hearth-demo.XXXXXX)
  outside
  local began
  began=$(now)
  nsenter --net="/run/netns/${OUTSIDE}n" target/release/hearthd --dev --dev-root "$ROOT" --dev-warm "$WARM" --set api.socket="$ROOT/s" \
    --set admin.listen= --set network.enabled=true --set network.resolvers=11.0.0.2 --set memory.swap="$([ -e /sys/class/zram-control ] && echo zram:1GiB || echo existing)" --set log.format=text >"$ROOT/hearthd.log" 2>&1 &
  DAEMON=$!
  until ctl pools -o name 2>/dev/null | grep -q .; do
    kill -0 "$DAEMON" 2>/dev/null || die "hearthd ended: see below"
    [ $(($(now) - began)) -lt 60000000000 ] || die "hearthd was not ready within 60 s"
    sleep 0.05
  done
  have "hearthd and containerd up, python image imported without a registry: $(seconds $(($(now) - began)))"
  local warm=0
  began=$(now)
  while :; do
    warm=$(ctl pools -o json | field pools.0.warm)
    bar $((warm * 100 / WARM)) "pool python: $warm/$WARM gVisor sandboxes warm, $(seconds $(($(now) - began)))   "
    [ "$warm" -lt "$WARM" ] || break
    [ $(($(now) - began)) -lt 60000000000 ] || die "the pool did not fill within 60 s"
    sleep 0.2
  done
  [ -t 1 ] && printf '\n' || :
}

# The same image and the same runtime through the same containerd, the usual way.
peer() {
  local times=() began id
  for id in 1 2 3; do
    began=$(now)
    "$BIN/ctr" --address "$ROOT/run/containerd/containerd.sock" -n hearth run --rm --runtime io.containerd.runc.v2 \
      --runc-binary "$PWD/target/release/hearth-runsc" --runc-root "$ROOT/run/runsc" \
      --cgroup "/$(basename "$ROOT")/ctr/demo-$id" hearth.local/python:3 "demo-$id" python3 -c pass >/dev/null 2>"$ROOT/ctr" || die "ctr run: $(cat "$ROOT/ctr")"
    times+=($(($(now) - began)))
  done
  rm -f "$ROOT/ctr"
  printf '%s\n' "${times[@]}" | sort -n | sed -n 2p
}

claim() {
  title "Claim a sandbox"
  local peer_ns claim_ns
  peer_ns=$(peer)
  typed "hearthctl claim python"
  CLAIM=$(ctl claim python -o json | field claim_id)
  claim_ns=$(ctl bench python -n 3 -o json | field claim_seconds.p50 | awk '{ printf "%d", $1 * 1e9 }')
  bar 100 "ctr run of the same image      $(seconds "$peer_ns") (median of 3)"
  [ -t 1 ] && printf '\n'
  bar 1 "hearth: durable, acknowledged  $(seconds "$claim_ns") (median of 3, seen by the client)"
  [ -t 1 ] && printf '\n'
  say "${GREEN}$(awk -v a="$peer_ns" -v b="$claim_ns" 'BEGIN { printf "%.0f", a / b }') times faster${PLAIN}"
}

work() {
  local short=${CLAIM:0:8}
  title "It is gVisor, not the host's kernel"
  typed "hearthctl exec $short -- dmesg"
  ctl exec "$CLAIM" -- busybox dmesg | head -n 3 | told
  say "host: $(uname -r), inside: $(ctl exec "$CLAIM" -- uname -r)"

  title "Run python, write a file, read it back"
  typed "hearthctl exec $short -- python3 -c 'print(sum(range(10**6)))'"
  ctl exec "$CLAIM" -- python3 -c 'print(sum(range(10**6)))' | told
  typed "echo 'made outside' | hearthctl cp - $short:/root/note; hearthctl cp $short:/root/note -"
  echo 'made outside' | ctl cp - "$CLAIM:/root/note" 2>&1 | told
  ctl cp "$CLAIM:/root/note" - | told

  title "Code in the interpreter that waits inside"
  typed "hearthctl run $short 'import platform; x = 6; platform.python_version(), x * 7'; hearthctl run $short 'x'"
  ctl run "$CLAIM" 'import platform; x = 6; platform.python_version(), x * 7' | told
  ctl run "$CLAIM" x | told
  typed "hearthctl bench python -n 1 --code 'print(6 * 7)'"
  ctl bench python -n 1 --code 'print(6 * 7)' 2>&1 | grep -E 'P50|code' | told
  say "python3 by exec, which a waiting worker serves: $(exec_time)"

  title "A server inside, reached from outside through hearth (nobody reaches the sandbox itself)"
  typed "hearthctl exec -d $short -- python3 -m http.server 8000; hearthctl port-forward $short :8000"
  ctl exec -d "$CLAIM" -w /root -- python3 -m http.server 8000 >/dev/null
  target/release/hearthctl --socket "$ROOT/s" port-forward "$CLAIM" :8000 >"$ROOT/forward" 2>&1 &
  local forward=$! port='' try
  for try in $(seq 100); do
    port=$(grep -o '127.0.0.1:[0-9]*' "$ROOT/forward" | head -1 | cut -d: -f2 || :)
    [ -n "$port" ] && fetch "$port" >"$ROOT/page" 2>/dev/null && break
    sleep 0.05
  done
  [ -s "$ROOT/page" ] || die "the server inside was not reached: $(cat "$ROOT/forward")"
  typed "curl http://127.0.0.1:$port/note"
  told <"$ROOT/page"
  kill "$forward" && wait "$forward" 2>/dev/null || :
  rm -f "$ROOT/forward" "$ROOT/page"
}
# How long an exec of python takes, seen by the client.
exec_time() {
  local began
  began=$(now)
  ctl exec "$CLAIM" -- python3 -c 'print(6)' >/dev/null
  seconds $(($(now) - began))
}
fetch() { python3 -c 'import sys,urllib.request as u; sys.stdout.write(u.urlopen(f"http://127.0.0.1:{sys.argv[1]}/note", timeout=2).read().decode())' "$1"; }

# What a sandbox may reach.
reach() {
  title "What it may reach is the claim's to say; everything else is refused"
  local claim short get='import sys, urllib.request as u
try: print(u.urlopen("http://%s/" % sys.argv[1], timeout=2).read().decode().strip())
except OSError as e: print("refused:", e)'
  typed "hearthctl claim python --network allow:11.1.1.1@tcp/80"
  claim=$(ctl claim python --network allow:11.1.1.1@tcp/80 -o json | field claim_id)
  short=${claim:0:8}
  local address said
  for address in 11.1.1.1 11.1.1.2; do
    typed "hearthctl exec $short -- python3 get.py http://$address/"
    said=$(ctl exec "$claim" -- python3 -c "$get" "$address")
    told <<<"$said"
    case "$address $said" in
    "11.1.1.1 the internet says hello" | "11.1.1.2 refused: "*) ;;
    *) die "the policy does not hold: $address: $said" ;;
    esac
  done
  typed "hearthctl net $short"
  ctl net "$claim" | told
  ctl release "$claim" >/dev/null
}

sleep_and_wake() {
  local short=${CLAIM:0:8}
  title "It sleeps while its agent thinks, and goes on"
  ctl exec -d "$CLAIM" -- python3 -c '
import os, time
ballast = bytearray(os.urandom(1 << 20)) * 50
n = 0
while True:
    n += 1
    with open("/tmp/m", "w") as f: f.write(str(n))
    os.replace("/tmp/m", "/tmp/n")
    time.sleep(.05)' >/dev/null
  sleep 1
  local sandbox
  sandbox=$(ctl get "$CLAIM" -o json | field sandbox_id)
  say "a counter with 50 MB: $(ctl exec "$CLAIM" -- cat /tmp/n), $(resident "$sandbox") MB in RAM"
  typed "hearthctl hibernate $short --waiting-on model"
  ctl hibernate "$CLAIM" --waiting-on model | told
  sleep 4
  say "asleep: $(resident "$sandbox") MB in RAM"
  typed "hearthctl exec $short -- cat /tmp/n"
  local began
  began=$(now)
  say "$(ctl exec "$CLAIM" -- cat /tmp/n) after $(seconds $(($(now) - began))), woken by its use"
  sleep 0.5
  say "$(ctl exec "$CLAIM" -- cat /tmp/n): it goes on"

  title "And on the disk: no RAM at all, a reboot would do it no harm"
  typed "hearthctl hibernate $short --tier disk"
  began=$(now)
  ctl hibernate "$CLAIM" --tier disk | told
  say "sealed and durable after $(seconds $(($(now) - began))); $(du -sm "$ROOT/data/hibernated" | cut -f1) MB on the disk"
  for _ in $(seq 100); do [ -n "$(find /sys/fs/cgroup -maxdepth 5 -type d -name "$sandbox" -print -quit)" ] || break; sleep 0.05; done
  say "asleep: no process, no cgroup of it is left"
  typed "hearthctl exec $short -- cat /tmp/n"
  began=$(now)
  say "$(ctl exec "$CLAIM" -- cat /tmp/n) after $(seconds $(($(now) - began))), restored by its use"
  sleep 0.5
  say "$(ctl exec "$CLAIM" -- cat /tmp/n): it goes on"
}
# What a sandbox has in RAM, MB.
resident() {
  local group
  group=$(find /sys/fs/cgroup -maxdepth 5 -type d -path "*$1" -exec sh -c 'test -e "$1/memory.usage_in_bytes" || test -e "$1/memory.current"' _ {} ';' -print -quit)
  cat "$group/memory.usage_in_bytes" "$group/memory.current" 2>/dev/null | awk '{ printf "%.1f", $1 / 1048576 }'
}

crowd() {
  title "Ten claims at once, and all released"
  typed "hearthctl bench python -n 10 -c 10"
  ctl bench python -n 10 -c 10 | told
  typed "hearthctl release ${CLAIM:0:8}"
  ctl release "$CLAIM" | told
}

finish() {
  title "The end: nothing is left behind"
  local began left
  began=$(now)
  stop
  no_outside
  left=$(leftovers)
  [ -z "$left" ] || die "left behind:"$'\n'"$left"
  have "no process, mount, cgroup, network namespace or file of it is left ($(seconds $(($(now) - began))))"
  printf '\n  Play with it: %smake dev%s, then in another shell %starget/release/hearthctl pools%s\n\n' \
    "$BOLD" "$PLAIN" "$BOLD" "$PLAIN"
}

prepare
start
claim
work
reach
sleep_and_wake
crowd
finish

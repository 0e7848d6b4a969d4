#!/usr/bin/env bash
# hearth's own image as an OCI archive, without a Docker engine or a registry: target/image/hearth.tar
#   hack/oci-image.sh [--out FILE] [--tag TAG] [--profile release|debug] [--stamp TEXT] [--check]
# --stamp appends a text to the programs that go onto nodes: another version of them, for tests of upgrades.
# --check packs a second time and fails when it is not the same, byte for byte.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
out=target/image/hearth.tar tag=$VERSION profile=release stamp='' check=''
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 && shift 2 ;;
    --tag) tag=$2 && shift 2 ;;
    --profile) profile=$2 && shift 2 ;;
    --stamp) stamp=$2 && shift 2 ;;
    --check) check=yes && shift ;;
    *) die "hack/oci-image.sh does not know $1" ;;
  esac
done
[ "$(id -u)" = 0 ] || die "run as root: the image's files belong to root"
command -v umoci >/dev/null || die "umoci is missing: run make setup"

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
created=$(TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo 1970-01-01T00:00:00Z)

# pack WORK OUT: from WORK/root. The same content gives the same bytes: sorted, owned by root, dated alike.
pack() {
  local layout=$1/layout label labels=()
  local tar=(tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 --format=gnu)
  rm -rf "$layout"
  "${tar[@]}" -C "$1/root" -cf "$1/layer.tar" .
  for label in title=hearth "version=$tag" "revision=$revision" licenses=Apache-2.0 \
    'description=Node agent that keeps warm pools of sandboxes'; do
    labels+=(--config.label "org.opencontainers.image.$label")
  done
  umoci init --layout "$layout"
  umoci new --image "$layout:latest"
  umoci raw add-layer --no-history --image "$layout:latest" "$1/layer.tar"
  umoci config --no-history --image "$layout:latest" --os linux --architecture amd64 --created "$created" \
    --config.env PATH=/usr/local/bin:/usr/sbin --config.workingdir / --config.user 0:0 \
    --config.entrypoint /usr/local/bin/hearthd "${labels[@]}"
  umoci gc --layout "$layout"
  # umoci knows tags only; the full name makes an import need no other.
  sed -i "s|\"org.opencontainers.image.ref.name\":\"latest\"|\"org.opencontainers.image.ref.name\":\"hearth.local/hearth:$tag\"|" "$layout/index.json"
  grep -q "hearth.local/hearth:$tag" "$layout/index.json" || return 1
  "${tar[@]}" -C "$layout" -cf "$2" oci-layout index.json blobs
}

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$(dirname "$out")/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
hack/image-root.sh "$work/root" "$profile"
if [ -n "$stamp" ]; then
  for program in hearth-init hearth-runsc; do printf '%s' "$stamp" >>"$work/root/usr/local/bin/$program"; done
fi
run_logged image-hearth pack "$work" "$work/first.tar" || die "the image could not be packed"
if [ -n "$check" ]; then
  # Copied, so that neither dates nor the order of directories are those of before.
  mkdir "$work/again"
  cp -r --preserve=mode "$work/root" "$work/again/root"
  run_logged image-hearth-again pack "$work/again" "$work/second.tar" || die "the image could not be packed again"
  cmp "$work/first.tar" "$work/second.tar" || die "two packings of the same programs differ"
  have "packed twice: the same bytes"
fi
mv "$work/first.tar" "$out"
digest=$(tar -xOf "$out" index.json | sed 's/.*"digest":"\(sha256:[0-9a-f]*\)".*/\1/')
have "hearth.local/hearth:$tag, $(du -m "$out" | cut -f1) MB: $out"
say "$digest"
